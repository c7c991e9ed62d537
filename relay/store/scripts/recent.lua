-- Note streams that have ended, for those who look for them later (`relay streams ls`). KEYS: the list (a sorted set by
-- the times of their ends). ARGV: for how many ms they are kept, how many at most, then of each: stream, ms since 1970.
-- Answers how many have gone from the list.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 3, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', ms - ARGV[1]), 'LIMIT', 0, 1000)
local further = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', ARGV[2], 1000)
for i, stream in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, #further)) do
  gone[#gone + 1] = stream
end
if #gone > 0 then
  redis.call('ZREM', KEYS[1], unpack(gone))
end
return #gone
