"""Credentials of the merchants' shortcodes, stored sealed and shown masked."""
