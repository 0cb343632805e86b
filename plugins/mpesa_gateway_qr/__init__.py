"""Dynamic QR codes of M-Pesa: a payer scans the receiver, the amount and the reference.

A scan proves nothing: the money arrives by C2B.
"""

COMMANDS = ()
