CREATE TRIGGER provider_credentials_told AFTER UPDATE OR DELETE ON provider_credentials
    FOR EACH ROW EXECUTE FUNCTION tell_change('credentials', 'merchant_id');
