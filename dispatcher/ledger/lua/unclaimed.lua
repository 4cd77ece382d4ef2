-- Note which runs have no claim now, and tell which of them have had none for long.
-- KEYS: sorted set. ARGV: how long in ms, then the run ids.
-- Returns the run ids that were in every note for that long.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local present = {}
for i = 2, #ARGV do
  present[ARGV[i]] = true
  redis.call('ZADD', KEYS[1], 'NX', now_ms, ARGV[i])
end
for _, run_id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if not present[run_id] then redis.call('ZREM', KEYS[1], run_id) end
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms - tonumber(ARGV[1]))
