-- Put a stream into the list of its owner's, or assert that it is there. KEYS: the list. ARGV: the entry, µs since 1970 at
-- which it was first put there ('0': now), ms to live, how many entries it may have at most.
-- Answers the time that it has, in µs. What is older than may live goes, and the oldest of too many.
local now = redis.call('TIME')
local us = now[1] * 1000000 + now[2]
local at = tonumber(ARGV[2])
if at == 0 then
  at = us
end
redis.call('ZADD', KEYS[1], 'NX', string.format('%.0f', at), ARGV[1])
local most = tonumber(ARGV[4])
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', us - ARGV[3] * 1000), 'LIMIT', 0, 100)
while redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', most + #old, 1)[1] do
  old[#old + 1] = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', #old, 1)[1]
end
for _, entry in ipairs(old) do
  redis.call('ZREM', KEYS[1], entry)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return string.format('%.0f', at)
