-- Take the lease of a claim that nobody holds.
-- KEYS: claim hash. ARGV: claim id, owner.
-- Returns {'', fence, cancel, transition id, attempt, pool} or {reason of the refusal}.
local held = redis.call('HMGET', KEYS[1], 'claim_id', 'stage', 'owner', 'fence', 'cancel',
  'transition_id', 'attempt', 'pool')
if not held[1] then return {'missing'} end
if held[1] ~= ARGV[1] then return {'superseded'} end
if held[2] == 'closed' or held[2] == 'finished' then return {held[2]} end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local fence = held[4]
if held[2] == 'held' then
  -- A repeated request whose answer was lost finds its own lease.
  if held[3] ~= ARGV[2] then return {'held'} end
else
  -- From the clock as well as from the last fence, so that it grows past a flushed ledger too.
  local from_clock = now[1] * 1000000 + now[2]
  fence = string.format('%.0f', math.max((tonumber(held[4]) or 0) + 1, from_clock))
end
redis.call('HSET', KEYS[1], 'stage', 'held', 'owner', ARGV[2], 'fence', fence,
  'touched_at', now_ms)
return {'', fence, held[5] or '0', held[6], held[7], held[8]}
