-- Say when a stream in the outbox is to be looked at. KEYS: the outbox (see `take.lua`). ARGV: stream, in how many ms,
-- 'NX' to put it in and leave the time of one that is there, 'XX' to change only one that is there, ms that the outbox
-- lives on.
local now = redis.call('TIME')
local at = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2])
redis.call('ZADD', KEYS[1], ARGV[3], at, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
