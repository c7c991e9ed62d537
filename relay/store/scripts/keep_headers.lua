-- Keep an upstream's headers with a stream that was made before they came. KEYS: its meta hash. ARGV: the headers.
-- Answers 1, 0 where there is no such stream.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'headers', ARGV[1])
return 1
