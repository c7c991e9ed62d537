-- Make a stream. KEYS: its meta hash. ARGV: lease ms, time to live ms, then field, value, …
-- Answers 1, also when a lost reply makes the caller ask twice: a stream id is never anyone else's.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'top', '0', 'lease', string.format('%d', ms + ARGV[1]),
    'born', string.format('%d', ms), 'seen', '0', 'ttl', ARGV[2], unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
