"""Administration over HTTP: merchants, their keys, and the audit log."""

routes = ()
