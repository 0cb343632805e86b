"""A shop's payments with FastAPI, SQLAlchemy and httpx."""
