"""Visits of operators' pages without HTTP."""

from mpesa_gateway.env import Env
from mpesa_gateway.ops_contract import PageRequest, Visitor
from mpesa_gateway.permissions import MerchantRole, Role, host_permissions, member_permissions
from mpesa_gateway.runtime import Runtime


def host_visit(gateway: Runtime, env: Env = "sandbox", role: Role = Role.VIEWER) -> PageRequest:
    """Return a visit by one of the host's people."""
    visitor = Visitor(name=role, role=role, actor=role, permissions=host_permissions(role))
    return PageRequest(gateway=gateway, visitor=visitor, values={}, env=env)


def member_visit(gateway: Runtime, merchant_id: str, role: MerchantRole, env: Env = "sandbox") -> PageRequest:
    """Return a visit by a member of a merchant."""
    visitor = Visitor(name=role, role=role, actor=role, permissions=member_permissions(role))
    query = {"merchant": [merchant_id]}
    return PageRequest(gateway=gateway, visitor=visitor, values={}, query=query, env=env, merchant_id=merchant_id)
