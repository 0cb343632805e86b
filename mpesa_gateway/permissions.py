"""The role table: permissions of the host's people and of a merchant's members.

docs/people.md prints this table; a test compares them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Permission(StrEnum):
    """A page, panel or action states exactly one."""

    ACCOUNT = "account"
    VIEW = "view"
    NUMBERS = "numbers"
    QUERY = "query"
    COLLECT = "collect"
    ALLOCATE = "allocate"
    RESOLVE = "resolve"
    DELIVER = "deliver"
    REFUND = "refund"
    DECIDE = "decide"
    APPROVE = "approve"
    AUDIT = "audit"
    CREDENTIALS = "credentials"
    KEYS = "keys"
    PEOPLE = "people"
    GATEWAY = "gateway"
    OPERATE = "operate"
    ADMINISTER = "administer"


class Role(StrEnum):
    """Roles of the host's people, who see every merchant. Each includes the one before."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class MerchantRole(StrEnum):
    """Roles of the members of one merchant."""

    OWNER = "owner"
    MANAGER = "manager"
    ACCOUNTANT = "accountant"
    CASHIER = "cashier"
    APPROVER = "approver"
    VIEWER = "viewer"


class Grant(NamedTuple):
    """The roles that have a permission.

    ``host`` is the lowest role of the host. ``is_strong``: the session needs a second factor. ``is_stepped``: the
    second factor must be recent.
    """

    text: str
    host: Role | None
    members: frozenset[MerchantRole]
    is_strong: bool = False
    is_stepped: bool = False


_OWNER, _MANAGER, _ACCOUNTANT, _CASHIER = (
    MerchantRole.OWNER,
    MerchantRole.MANAGER,
    MerchantRole.ACCOUNTANT,
    MerchantRole.CASHIER,
)
_EVERY_ROLE = frozenset(MerchantRole)
_NO_ROLE = frozenset[MerchantRole]()

GRANTS: Mapping[Permission, Grant] = {
    Permission.ACCOUNT: Grant("Own password, second factor and sessions", Role.VIEWER, _EVERY_ROLE),
    Permission.VIEW: Grant(
        "Payments, refunds, statement lines, deliveries; phone numbers masked", Role.VIEWER, _EVERY_ROLE
    ),
    Permission.NUMBERS: Grant(
        "Whole phone numbers: on pages, in the search and in exports",
        Role.OPERATOR,
        frozenset({_OWNER, _MANAGER, _ACCOUNTANT}),
        is_strong=True,
    ),
    Permission.QUERY: Grant(
        "Ask M-Pesa about a payment or refund",
        Role.OPERATOR,
        frozenset({_OWNER, _MANAGER, _ACCOUNTANT, _CASHIER}),
    ),
    Permission.COLLECT: Grant("Ask a payer for a payment", Role.ADMIN, frozenset({_OWNER, _MANAGER, _CASHIER})),
    Permission.ALLOCATE: Grant(
        "Claim money that names no payment",
        Role.OPERATOR,
        frozenset({_OWNER, _MANAGER, _ACCOUNTANT, _CASHIER}),
        is_strong=True,
    ),
    Permission.RESOLVE: Grant(
        "Read statements, match and dismiss lines, mark as resolved",
        Role.OPERATOR,
        frozenset({_OWNER, _MANAGER, _ACCOUNTANT}),
        is_strong=True,
    ),
    Permission.DELIVER: Grant("Test a webhook, resend deliveries", Role.OPERATOR, frozenset({_OWNER, _MANAGER})),
    Permission.REFUND: Grant("Refund a payment", Role.OPERATOR, frozenset({_OWNER, _MANAGER}), is_strong=True),
    Permission.DECIDE: Grant(
        "State the outcome of a refund that M-Pesa does not report", Role.ADMIN, frozenset({_OWNER}), is_strong=True
    ),
    Permission.APPROVE: Grant("Approve payouts", None, frozenset({_OWNER, MerchantRole.APPROVER}), is_strong=True),
    Permission.AUDIT: Grant("The audit log", Role.VIEWER, frozenset({_OWNER})),
    Permission.CREDENTIALS: Grant(
        "Change M-Pesa credentials, webhook addresses and secrets",
        Role.ADMIN,
        frozenset({_OWNER}),
        is_strong=True,
        is_stepped=True,
    ),
    Permission.KEYS: Grant(
        "Create and revoke API keys", Role.ADMIN, frozenset({_OWNER}), is_strong=True, is_stepped=True
    ),
    Permission.PEOPLE: Grant(
        "Invite and remove members, change roles, reset a second factor",
        Role.ADMIN,
        frozenset({_OWNER}),
        is_strong=True,
        is_stepped=True,
    ),
    Permission.GATEWAY: Grant("All merchants, callbacks, events, queue, system", Role.VIEWER, _NO_ROLE),
    Permission.OPERATE: Grant("Retry jobs, events and callbacks; verify the audit log", Role.OPERATOR, _NO_ROLE),
    Permission.ADMINISTER: Grant(
        "Create and deactivate merchants, accept refused callbacks, the host's people",
        Role.ADMIN,
        _NO_ROLE,
        is_strong=True,
        is_stepped=True,
    ),
}

ALWAYS_STRONG: frozenset[Role | MerchantRole] = frozenset({Role.ADMIN, MerchantRole.OWNER, MerchantRole.APPROVER})
"""Roles that need a second factor for every page except the account's."""


def host_permissions(role: Role | None) -> frozenset[Permission]:
    if role is None:
        return frozenset()
    ranks = list(Role)
    return frozenset(
        permission
        for permission, grant in GRANTS.items()
        if grant.host is not None and ranks.index(role) >= ranks.index(grant.host)
    )


def member_permissions(role: MerchantRole | None) -> frozenset[Permission]:
    return frozenset(permission for permission, grant in GRANTS.items() if role in grant.members)


def is_of_merchant(permission: Permission) -> bool:
    """True if members can have the permission: what it shows must be limited to one merchant."""
    return permission is not Permission.ACCOUNT and bool(GRANTS[permission].members)


def role_table() -> list[tuple[str, ...]]:
    """Rows of the documentation: permission, the host's roles, the members' roles, second factor."""
    head = ("Permission", "", *(f"host {role}" for role in Role), *MerchantRole, "second factor")
    rows: list[tuple[str, ...]] = [head]
    for permission, grant in GRANTS.items():
        host = tuple("yes" if permission in host_permissions(role) else "" for role in Role)
        members = tuple("yes" if role in grant.members else "" for role in MerchantRole)
        factor = "recent" if grant.is_stepped else "yes" if grant.is_strong else ""
        rows.append((f"`{permission}`", grant.text, *host, *members, factor))
    return rows
