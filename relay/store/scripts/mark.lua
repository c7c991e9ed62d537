-- Note something of a stream that is there. KEYS: meta. ARGV: field, value, …
-- Answers 1, 0 where there is no such stream: what is noted of it comes with its making then.
if not redis.call('HGET', KEYS[1], 'top') then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
