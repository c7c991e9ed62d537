-- The lease of a stream is over now: its producer leaves it to another replica. KEYS: meta. ARGV: the producer's fence.
-- Answers 1, or 0 where the stream is not there, has ended, or is another's.
local m = redis.call('HMGET', KEYS[1], 'fence', 'end')
if m[1] ~= ARGV[1] or m[2] then
  return 0
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'lease', string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000) - 1))
return 1
