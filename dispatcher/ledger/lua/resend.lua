-- Note that the message of a claim that nobody has taken is sent once more, to a worker.
-- KEYS: open index, claim hash. ARGV: run id, claim id, worker.
-- Returns how often it was sent again, or 0 if the claim does not wait for its task.
local held = redis.call('HMGET', KEYS[2], 'claim_id', 'stage', 'weight')
if held[1] ~= ARGV[2] or held[2] ~= 'pending' then return 0 end
local now = redis.call('TIME')
leave_place(KEYS[1], KEYS[2], ARGV[1])
take_place(KEYS[1], ARGV[3], ARGV[1], held[3])
redis.call('HSET', KEYS[2], 'node', ARGV[3],
  'touched_at', now[1] * 1000 + math.floor(now[2] / 1000))
return redis.call('HINCRBY', KEYS[2], 'resends', 1)
