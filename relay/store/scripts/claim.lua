-- Give a name to a stream, once. KEYS: the name. ARGV: stream id, what the name stands for (a digest), ms to live.
-- Answers {stream id, digest} of the stream that has the name: the caller's own, or the one that came first.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'stream', ARGV[1], 'digest', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('HMGET', KEYS[1], 'stream', 'digest')
