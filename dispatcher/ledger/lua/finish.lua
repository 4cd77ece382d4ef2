-- Keep the outcome of a job whose end Prefect does not know yet; its slot is free.
-- KEYS: open index, unreported index, claim hash. ARGV: run id, claim id, fence, outcome.
-- Returns 1 once it is kept, 0 if the lease is somebody else's.
local held = redis.call('HMGET', KEYS[3], 'claim_id', 'stage', 'fence')
if held[1] ~= ARGV[2] or held[3] ~= ARGV[3] then return 0 end
if held[2] ~= 'held' and held[2] ~= 'finished' then return 0 end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[3], 'stage', 'finished', 'outcome', ARGV[4], 'touched_at', now_ms)
redis.call('ZREM', KEYS[1], ARGV[1])
leave_place(KEYS[1], KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
return 1
