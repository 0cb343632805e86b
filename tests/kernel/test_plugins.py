"""Protects the list of plugins: an invalid one is refused before any connection, with what to change."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import msgspec
import pytest
from litestar import get

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackKind
from mpesa_gateway.db.outbox import HANDLE
from mpesa_gateway.events import Event
from mpesa_gateway.http.auth import RouteError
from mpesa_gateway.ids import KERNEL_PREFIXES, IdPrefix
from mpesa_gateway.plugin import Job, Plugin, PluginError, RetentionRule, load
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import INJECTED, KERNEL_SCOPES, Caller, Scope
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import PLUGINS


class Opened(Event, frozen=True, kw_only=True):
    """A shop opened."""

    kind: ClassVar[str] = "shop.opened"


class AlsoOpened(Event, frozen=True, kw_only=True):
    """Another event with the same name."""

    kind: ClassVar[str] = "shop.opened"


class ShopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a plugin of this test."""

    size: int = 1


SHOP = Plugin(name="shop", summary="A shop.", settings=ShopSettings, publishes=(Opened,))


def gateway(*plugins: Plugin, **changes: Any) -> Gateway:
    """Return a gateway that is not started: there are no servers at its addresses."""
    values: dict[str, Any] = {
        "plugins": [],
        "database": {"url": "postgresql://mpesa@127.0.0.1:9/shop"},
        "valkey": {"url": "valkey://127.0.0.1:9/0"},
        "security": {"master_key": generate()},
    }
    return Gateway(GatewayConfig.from_values(values | changes), plugins=plugins)


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, *, entry: str) -> None:
    """Install a distribution with one module and one entry point, as pip would."""
    module = "strange_" + folder.name
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mpesa_gateway.plugins]\n{entry} = {module}:plugin\n")
    monkeypatch.syspath_prepend(folder)


def test_load_keeps_the_listed_order_with_the_hosts_own_last() -> None:
    names = ("webhooks", "credentials", "callbacks", "transactions", "payments")
    assert [plugin.name for plugin in load(names, [SHOP])] == [*names, "shop"]
    assert load(()) == ()


def test_load_of_an_unknown_plugin_is_refused_with_the_installed_ones() -> None:
    with pytest.raises(PluginError, match=r"`barter` is not installed \(installed: .*credentials.*\): install it or"):
        load(["credentials", "barter"])


def test_load_of_a_plugin_listed_twice_is_refused() -> None:
    with pytest.raises(PluginError, match=r"`credentials` is listed twice: remove one of them from `plugins`"):
        load(["credentials", "credentials"])


def test_load_of_a_plugin_both_listed_and_given_is_refused() -> None:
    (credentials,) = load(["credentials"])
    with pytest.raises(PluginError, match=r"`credentials` is given twice: remove it from `plugins` or from the code"):
        load(["credentials"], [credentials])
    with pytest.raises(PluginError, match="`shop` is given twice"):
        load([], [SHOP, Plugin(name="shop", summary="Another.")])


def test_load_without_a_required_plugin_is_refused_and_the_listed_order_does_not_matter() -> None:
    needy = Plugin(name="needy", summary="Needs.", requires=("shop",))
    with pytest.raises(PluginError, match="`needy` requires `shop`: add it to `plugins`"):
        load([], [needy])
    assert load([], [needy, SHOP]) == (SHOP, needy)
    with pytest.raises(PluginError, match="`payments` requires `"):
        load(["payments"])


def test_load_places_each_plugin_after_those_that_it_requires() -> None:
    names = list(PLUGINS)
    loaded = [plugin.name for plugin in load(sorted(names, reverse=True))]
    assert sorted(loaded) == sorted(names)
    for number, plugin in enumerate(load(sorted(names, reverse=True))):
        assert set(plugin.requires) <= set(loaded[:number])
    assert [plugin.name for plugin in load(["metrics", "ops", "credentials"])] == ["metrics", "ops", "credentials"]


def test_load_of_plugins_that_require_each_other_is_refused() -> None:
    first, second = (Plugin(name=a, summary="Needs.", requires=(b,)) for a, b in (("one", "two"), ("two", "one")))
    with pytest.raises(PluginError, match="these plugins require each other: one, two"):
        load([], [first, second])


class FileSettings(msgspec.Struct, frozen=True):
    """Settings with a name that the environment reads as a file."""

    cert_file: str = ""


def test_load_of_a_setting_that_the_environment_reads_as_a_file_is_refused() -> None:
    greedy = Plugin(name="greedy", summary="Reads.", settings=FileSettings)
    with pytest.raises(PluginError, match=r"`greedy` has a setting `cert_file`.*name the setting otherwise"):
        load([], [greedy])


def test_load_does_not_import_plugins_that_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, "raise RuntimeError('imported')", entry="bomb")
    assert [plugin.name for plugin in load(["credentials"])] == ["credentials"]
    with pytest.raises(RuntimeError, match="imported"):
        load(["bomb"])


def test_load_of_a_third_party_plugin_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from mpesa_gateway.plugin import Plugin\nplugin = Plugin(name='stranger', summary='Says hello.')\n"
    installed(tmp_path, monkeypatch, code, entry="stranger")
    assert load(["credentials", "stranger"])[1] == Plugin(name="stranger", summary="Says hello.")


def test_load_of_an_entry_point_that_is_no_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, "plugin = 'hello'\n", entry="text")
    with pytest.raises(PluginError, match=r"`text` is no Plugin value: its entry point `strange_.*:plugin` must"):
        load(["text"])


def test_load_of_an_entry_point_under_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from mpesa_gateway.plugin import Plugin\nplugin = Plugin(name='shop', summary='A shop.')\n"
    installed(tmp_path, monkeypatch, code, entry="market")
    with pytest.raises(PluginError, match="`market` calls itself `shop`: its entry point must carry its own name"):
        load(["market"])


SHOPS_READ = Scope("shops:read", "see shops")
SHOPS_CLOSE = Scope("shops:close", "close shops", is_for_merchants=False)


@get("/v1/shops")
async def list_shops(caller: Annotated[Caller, INJECTED, SHOPS_READ]) -> None:
    """A route with a scope of a plugin."""


def test_scope_is_known_if_its_plugin_is_enabled() -> None:
    shop = Plugin(name="shop", summary="A shop.", scopes=(SHOPS_READ, SHOPS_CLOSE))
    assert gateway().scopes.all == KERNEL_SCOPES
    known = gateway(shop).scopes
    assert known.all == (SHOPS_READ, SHOPS_CLOSE, *KERNEL_SCOPES)
    assert [str(scope) for scope in known.of_merchants] == [
        "shops:read",
        "merchant:read",
        "merchant:write",
        "audit:read",
    ]
    assert known.named(["shops:close", "admin"]) == (SHOPS_CLOSE, KERNEL_SCOPES[-1])
    with pytest.raises(ValueError, match=r"each scope must be one of admin, .*, shops:close, shops:read"):
        known.named(["shops:read", "shops:open"])
    with pytest.raises(ValueError, match="name at least one of admin, "):
        known.named([])


@pytest.mark.parametrize(
    ("scope", "owner"),
    [(Scope("shops:read", "see ours"), "plugin `shop`"), (Scope("admin", "do it all"), "the kernel")],
)
def test_scope_that_is_declared_twice_is_refused(scope: Scope, owner: str) -> None:
    shop = Plugin(name="shop", summary="A shop.", scopes=(SHOPS_READ,))
    twin = Plugin(name="twin", summary="Another.", scopes=(scope,))
    said = f"{owner} and plugin `twin` declare the scope `{scope}`: rename it in one of them, or enable only one"
    with pytest.raises(PluginError, match=said):
        gateway(shop, twin)


def test_route_with_an_undeclared_scope_is_refused() -> None:
    mute = Plugin(name="mute", summary="Says nothing of its scope.", routes=(list_shops,))
    with pytest.raises(RouteError, match="no enabled plugin declares the scope `shops:read`: list it in the `scopes`"):
        gateway(mute).asgi.build()
    gateway(mute, Plugin(name="shop", summary="A shop.", scopes=(SHOPS_READ,))).asgi.build()


def test_id_prefix_belongs_to_one_plugin() -> None:
    shop = Plugin(name="shop", summary="A shop.", id_prefixes=(IdPrefix("shp", "shop"),))
    assert gateway(shop).id_prefixes["shp"].what == "shop"
    assert set(gateway().id_prefixes) == {prefix.name for prefix in KERNEL_PREFIXES}
    twin = Plugin(name="twin", summary="Another.", id_prefixes=(IdPrefix("shp", "ship"),))
    with pytest.raises(PluginError, match="plugin `shop` and plugin `twin` declare the id prefix `shp`: rename it"):
        gateway(shop, twin)
    with pytest.raises(PluginError, match="the kernel and plugin `greedy` declare the id prefix `mer`"):
        gateway(Plugin(name="greedy", summary="Ours.", id_prefixes=(IdPrefix("mer", "mermaid"),)))
    with pytest.raises(PluginError, match="`long`: the id prefix `shop` must be three letters"):
        gateway(Plugin(name="long", summary="Long.", id_prefixes=(IdPrefix("shop", "shop"),)))


def test_id_prefix_that_is_not_declared_is_refused() -> None:
    old = RetentionRule("old shops", "DELETE FROM shop WHERE shop_id < $1", days=lambda _: 1, prefix="shp")
    with pytest.raises(PluginError, match="plugin `shop` names the id prefix `shp`: list it in `id_prefixes`"):
        gateway(Plugin(name="shop", summary="A shop.", retention=(old,)))


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ([("question", "c2b/question"), ("ticket", "c2b/question")], "`question` and `ticket` have one path"),
        ([("question", ""), ("ticket", "")], "`question` and `ticket` have one path"),
        ([("question", None), ("question", None)], "declare the callback kind `question`"),
        ([("question", "c2b")], "`question`: its path must have two parts"),
        ([("question", "/c2b/question")], "`question`: its path must have two parts"),
        ([("Question", None)], "`Question` cannot be part of an address"),
        ([("mpesa", None)], "`mpesa` cannot be part of an address"),
        ([("a" * 32, None)], "cannot be part of an address"),
    ],
)
def test_callback_kind_whose_name_or_path_is_taken_or_malformed_is_refused(
    kinds: list[tuple[str, str | None]], said: str
) -> None:
    shops = [
        Plugin(
            name=f"shop_{'ab'[number]}",
            summary="A shop.",
            callbacks=(CallbackKind(name=name, path=path, read=_read_nothing, event=None, schema={}),),
        )
        for number, (name, path) in enumerate(kinds)
    ]
    with pytest.raises(PluginError, match=said):
        gateway(*shops)


def test_callback_kinds_without_a_path_may_be_several() -> None:
    kinds = [CallbackKind(name=name, read=_read_nothing, event=None, schema={}) for name in ("question", "c2b-ticket")]
    assert list(gateway(Plugin(name="shop", summary="A shop.", callbacks=tuple(kinds))).callback_kinds) == [
        "question",
        "c2b-ticket",
    ]


def _read_nothing(_: bytes) -> CallbackContent:
    return CallbackContent("", "0", (), {})


def test_event_kind_published_twice_is_refused() -> None:
    twin = Plugin(name="twin", summary="Another.", publishes=(AlsoOpened,))
    with pytest.raises(PluginError, match=r"two plugins publish `shop\.opened`: enable only one of them"):
        gateway(SHOP, twin)
    assert gateway(SHOP).event_type("shop.opened") is Opened
    with pytest.raises(LookupError, match=r"no enabled plugin publishes bell\.rang"):
        gateway(SHOP).event_type("bell.rang")


def test_section_without_a_plugin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown section `\[barter\]`: .* add the plugin to `plugins`"):
        gateway(SHOP, barter={"a": 1})
    with pytest.raises(ConfigError, match=r"unknown section `\[shop\]`"):
        gateway(shop={"size": 2})


def test_section_of_a_plugin_is_read_into_its_settings() -> None:
    assert gateway(SHOP, shop={"size": 2}).settings(ShopSettings) == ShopSettings(size=2)
    assert gateway(SHOP).settings(ShopSettings) == ShopSettings()
    with pytest.raises(ConfigError, match=r"unknown setting `shop\.sise`.*\(known: size\)"):
        gateway(SHOP, shop={"sise": 2})
    with pytest.raises(ConfigError, match=r"setting `shop\.size`: Expected `int`"):
        gateway(SHOP, shop={"size": "big"})


def test_section_of_a_plugin_without_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting `bare\.a`"):
        gateway(Plugin(name="bare", summary="Bare."), bare={"a": 1})


def test_port_provided_by_two_plugins_is_refused() -> None:
    plugins = [Plugin(name=name, summary="Sells.", provides=((Shop, Shop),)) for name in ("one", "two")]
    with pytest.raises(ValueError, match="two plugins provide Shop: enable only one of them"):
        gateway(*plugins)
    assert isinstance(gateway(plugins[0]).services.get(Shop), Shop)
    assert isinstance(gateway(plugins[0]).port(Shop), Shop)
    with pytest.raises(LookupError, match=r"no enabled plugin provides .*\.Shop: add the plugin that owns it"):
        gateway().services.get(Shop)


class Shop:
    """A port of a plugin."""

    def __init__(self, gateway: Runtime) -> None:
        self.gateway = gateway


def test_job_is_named_after_its_plugin() -> None:
    async def sweep(gateway: Gateway) -> None:
        """Does nothing."""

    swept = gateway(Plugin(name="shop", summary="A shop.", jobs=(Job(sweep, timeout=5),)))
    assert swept.jobs_by_name["shop.sweep"].fn is sweep
    assert set(gateway().jobs_by_name) < set(swept.jobs_by_name)
    # A job without a queue does not share one with sweeps, webhooks and calls to M-Pesa.
    assert swept.jobs_by_name["shop.sweep"].queue == "default"


def test_load_with_a_job_in_an_unknown_queue_is_refused() -> None:
    async def sweep(gateway: Gateway) -> None:
        """Does nothing."""

    jobs = (Job(sweep, timeout=5, queue=cast("Any", "webhooks")),)
    with pytest.raises(PluginError, match=r"the job `shop\.sweep` names the queue `webhooks`"):
        gateway(Plugin(name="shop", summary="A shop.", jobs=jobs))


def test_own_jobs_name_their_queue() -> None:
    known = gateway(plugins=[name for name in PLUGINS if name != "simulator"]).jobs_by_name
    assert {job.queue for name, job in known.items() if name != HANDLE} <= {"deliveries", "daraja", "maintenance"}


def test_gateway_without_a_server_address_names_the_variable() -> None:
    for name in ("database", "valkey"):
        with pytest.raises(ConfigError, match=rf"`{name}\.url` is not set: set MPESA_GATEWAY_{name.upper()}__URL"):
            gateway(**{name: {}})
