-- Whether the address that a callback was refused for had said for whom it asks (X-Forwarded-For): then it is a proxy.
ALTER TABLE refused_callback ADD COLUMN was_forwarded boolean NOT NULL DEFAULT false;
