-- That a merchant has gone live is heard at once: what only a sandbox allows ends with it.
DROP TRIGGER merchant_told ON merchant;
CREATE TRIGGER merchant_told AFTER UPDATE OF is_active, envs OR DELETE ON merchant
    FOR EACH ROW EXECUTE FUNCTION tell_change('merchant', 'merchant_id');
