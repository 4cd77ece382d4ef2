-- Note that the holder of a lease is dead, so that nobody has to wait for the lease to run out.
-- KEYS: claim hash. ARGV: claim id, the holder's Celery worker.
-- Returns the pool, or '' if the claim is not held on that worker.
local held = redis.call('HMGET', KEYS[1], 'claim_id', 'stage', 'owner', 'pool')
if held[1] ~= ARGV[1] or held[2] ~= 'held' then return '' end
if string.sub(held[3], 1, #ARGV[2] + 1) ~= ARGV[2] .. '#' then return '' end
redis.call('HSET', KEYS[1], 'touched_at', 0)
return held[4]
