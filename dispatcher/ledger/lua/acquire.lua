-- Take the lease of a claim that nobody holds.
-- KEYS: open index, claim hash.
-- ARGV: run id, claim id, owner, its worker, then the pools that it serves, none for all.
-- Returns {'', fence, cancel, transition id, attempt, pool, weight} or {reason of the refusal}.
local function serves(pool)
  for i = 5, #ARGV do
    if ARGV[i] == pool then return true end
  end
  return #ARGV < 5
end
local held = redis.call('HMGET', KEYS[2], 'claim_id', 'stage', 'owner', 'fence', 'cancel',
  'transition_id', 'attempt', 'pool', 'weight', 'node')
if not held[1] then return {'missing'} end
if held[1] ~= ARGV[2] then return {'superseded'} end
if held[2] == 'closed' or held[2] == 'finished' then return {held[2]} end
if not serves(held[8]) then return {'foreign'} end
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local fence = held[4]
if held[2] == 'held' then
  -- A repeated request whose answer was lost finds its own lease.
  if held[3] ~= ARGV[3] then return {'held'} end
else
  -- From the clock as well as from the last fence, so that it grows past a flushed ledger too.
  local from_clock = now[1] * 1000000 + now[2]
  fence = string.format('%.0f', math.max((tonumber(held[4]) or 0) + 1, from_clock))
end
if held[10] ~= ARGV[4] then
  leave_place(KEYS[1], KEYS[2], ARGV[1])
  take_place(KEYS[1], ARGV[4], ARGV[1], held[9])
end
redis.call('HSET', KEYS[2], 'stage', 'held', 'owner', ARGV[3], 'fence', fence,
  'touched_at', now_ms, 'node', ARGV[4])
return {'', fence, held[5] or '0', held[6], held[7], held[8], held[9] or '1'}
