"""The operators' pages under /ops: login, sessions, roles, layout, queue and the kernel's own pages.

Other plugins register their pages, actions and panels; this plugin imports none of them.
"""
