"""A shop's payments with Django and django-daraja."""
