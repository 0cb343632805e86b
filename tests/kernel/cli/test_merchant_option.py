"""Protects how commands learn their merchant: an option, an argument, the environment, or the only active one."""

from tests.kernel.cli.terminal import Host, is_refused


def test_apikeys_take_the_merchant_in_every_form(host: Host) -> None:
    one = host.output_of("merchants", "create", "One")
    # The only active merchant.
    host.output_of("apikeys", "create", "--name", "default")
    two = host.output_of("merchants", "create", "Two")
    assert is_refused(host.run("apikeys", "list"), 1, "name one with --merchant")
    host.output_of("apikeys", "create", one, "--name", "argument")
    host.output_of("apikeys", "create", "--merchant", one, "--name", "option")
    host.variables["MERCHANT"] = one
    host.output_of("apikeys", "create", "--name", "environment")
    # The command line comes before the environment.
    host.output_of("apikeys", "create", two, "--name", "other argument")
    host.output_of("apikeys", "create", "--merchant", two, "--name", "other option")
    keys = {id_: host.output_of("apikeys", "list", id_).splitlines()[1:] for id_ in (one, two)}
    names = {id_: {line.split("\t")[1] for line in lines} for id_, lines in keys.items()}
    assert names == {
        one: {"default", "argument", "option", "environment"},
        two: {"other argument", "other option"},
    }
    both = host.run("apikeys", "list", one, "--merchant", two)
    assert (both.returncode, "name two merchants" in both.stderr) == (2, True)
    assert host.run("apikeys", "list", two, "--merchant", two).returncode == 0


def test_apikeys_revoke_takes_the_merchant_in_every_form_and_revokes_no_other_merchants_key(host: Host) -> None:
    one, two = (host.output_of("merchants", "create", name) for name in ("One", "Two"))
    for _ in range(3):
        host.output_of("apikeys", "create", one)
    keys = [line.split("\t")[0] for line in host.output_of("apikeys", "list", one).splitlines()[1:]]
    assert is_refused(host.run("apikeys", "revoke", two, keys[0], "--yes"), 1, "no such")
    assert is_refused(host.run("apikeys", "revoke", keys[0], "--yes"), 1, "name one with --merchant")
    host.output_of("apikeys", "revoke", one, keys[0], "--yes")
    host.output_of("apikeys", "revoke", keys[1], "--merchant", one, "--yes")
    host.variables["MERCHANT"] = one
    host.output_of("apikeys", "revoke", keys[2], "--yes")
    assert host.output_of("apikeys", "list", one).count("revoked 2") == 3
    assert host.run("apikeys", "revoke", one, two, keys[0], "--yes").returncode == 2


def test_events_are_listed_shown_and_refused_by_their_ids(host: Host) -> None:
    host.output_of("merchants", "create", "One")
    assert host.output_of("events", "list") == "event_id\toccurred_at\tkind\tsubject_id"
    assert host.output_of("events", "list", "--json", "--type", "payment.completed") == "[]"
    missing = "evt_00000000000000000000000000"
    assert is_refused(host.run("events", "show", missing), 1, "no such event")
    assert is_refused(host.run("events", "retry", missing, "webhooks"), 1, "no such event")
