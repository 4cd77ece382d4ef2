-- Note that a poll is wanted. One nudge is worth as much as many.
-- KEYS: list of nudges, lock that a poll at work holds. ARGV: lifetime in ms.
-- Returns 1 if a poll has to be sent for, 0 if one is on its way or will see the nudge.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('RPUSH', KEYS[1], '1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1 - redis.call('EXISTS', KEYS[2])
