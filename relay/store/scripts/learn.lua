-- What is learnt of a stream after it was made. KEYS: its meta hash. ARGV: the producer's fence, then field, value, …
-- Answers 1, or 0 where the stream is not there or someone else has ended it.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
