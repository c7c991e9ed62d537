-- Give a name back that a stream has claimed. KEYS: the name. ARGV: stream id.
-- Answers 1 where it had the name.
if redis.call('HGET', KEYS[1], 'stream') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
