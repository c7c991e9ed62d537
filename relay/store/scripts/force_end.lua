-- End a stream whose producer is lost, exactly once, and fence the producer off.
-- KEYS: log, meta. ARGV: expected top, outcome, retention ms, tombstone ms, the end mark's content.
-- It takes no number: a store that then loses this end, and gets a living producer's next events instead, has told no
-- reader an id that one of them bears.
-- Answers {code, top}: 1 ended, 3 MISMATCH, 4 GONE, 5 already ended, 6 the producer is alive.
local log, meta = KEYS[1], KEYS[2]
local m = redis.call('HMGET', meta, 'top', 'end', 'lease', 'fence')
local top = tonumber(m[1])
if not m[1] then
  return { 4, 0 }
end
if m[2] then
  return { 5, top }
end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
if tonumber(m[3]) > ms then
  return { 6, top }
end
if top ~= tonumber(ARGV[1]) then
  return { 3, top }
end
redis.call('XADD', log, string.format('%d-1', top), 'end', ARGV[5])
redis.call('HSET', meta, 'end', ARGV[2], 'ended', string.format('%d', ms), 'fence', string.format('%d', m[4] + 1))
redis.call('PEXPIRE', log, ARGV[3])
redis.call('PEXPIRE', meta, ARGV[3] + ARGV[4])
redis.call('SPUBLISH', log, '')
return { 1, top }
