-- Take a name back from a stream that never came to be. KEYS: the name. ARGV: stream id.
if redis.call('HGET', KEYS[1], 'stream') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
