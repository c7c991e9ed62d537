-- Take over a stream whose producer is lost, exactly once: the lease is the caller's, and the one before is fenced off.
-- KEYS: meta. ARGV: expected fence, expected top, the caller's replica, lease ms.
-- Answers {code, top, ms since the stream was made, ms since its lease lapsed}: 1 it is the caller's, 2 FENCED (another was
-- first), 3 MISMATCH, 4 GONE, 5 it has ended, 6 the producer is alive. Who asks again, for want of a reply, has it already.
local m = redis.call('HMGET', KEYS[1], 'top', 'end', 'lease', 'fence', 'born', 'replica')
local top = tonumber(m[1])
if not m[1] then
  return { 4, 0, 0, 0 }
end
if m[2] then
  return { 5, top, 0, 0 }
end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
if m[6] == ARGV[3] and tonumber(m[4]) == ARGV[1] + 1 and top == tonumber(ARGV[2]) then
  return { 1, top, ms - m[5], ms + ARGV[4] - m[3] }
end
if m[4] ~= ARGV[1] then
  return { 2, top, 0, 0 }
end
if tonumber(m[3]) > ms then
  return { 6, top, 0, 0 }
end
if top ~= tonumber(ARGV[2]) then
  return { 3, top, 0, 0 }
end
redis.call('HSET', KEYS[1], 'fence', string.format('%d', m[4] + 1), 'replica', ARGV[3],
  'lease', string.format('%d', ms + ARGV[4]))
return { 1, top, ms - m[5], ms - m[3] }
