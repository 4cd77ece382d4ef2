-- Ask the holder of a claim to stop its job; a claim that nobody holds yet is closed.
-- KEYS: open index, claim hash. ARGV: run id, retention in ms.
-- Returns {what happened, claim id}: 'marked' (first request to a holder), 'waiting' (a holder
-- knows already), 'closed' (nobody held it, nobody will now), 'absent' (no open claim, or one
-- whose job has ended).
local held = redis.call('HMGET', KEYS[2], 'claim_id', 'stage', 'cancel')
if not held[1] or held[2] == 'closed' or held[2] == 'finished' then return {'absent', held[1] or ''} end
if held[2] ~= 'held' then
  redis.call('HSET', KEYS[2], 'stage', 'closed')
  redis.call('ZREM', KEYS[1], ARGV[1])
  leave_place(KEYS[1], KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return {'closed', held[1]}
end
if held[3] == '1' then return {'waiting', held[1]} end
redis.call('HSET', KEYS[2], 'cancel', '1')
return {'marked', held[1]}
