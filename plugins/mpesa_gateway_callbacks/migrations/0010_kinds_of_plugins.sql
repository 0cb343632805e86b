-- Which kinds of callbacks there are is for the plugins to say that declare them.
ALTER TABLE callback DROP CONSTRAINT callback_kind_check;
ALTER TABLE refused_callback DROP CONSTRAINT refused_callback_kind_check;
ALTER TABLE refused_callback ADD CONSTRAINT refused_callback_kind_check CHECK (kind <> '');
