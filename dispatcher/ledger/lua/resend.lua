-- Note that the message of a claim that nobody has taken is sent once more.
-- KEYS: claim hash. ARGV: claim id.
-- Returns how often it was sent again, or 0 if the claim does not wait for its task.
local held = redis.call('HMGET', KEYS[1], 'claim_id', 'stage')
if held[1] ~= ARGV[1] or held[2] ~= 'pending' then return 0 end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'touched_at', now[1] * 1000 + math.floor(now[2] / 1000))
return redis.call('HINCRBY', KEYS[1], 'resends', 1)
