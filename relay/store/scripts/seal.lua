-- End a stream whose producer is lost, exactly once, and fence the producer off.
-- KEYS: log, meta. ARGV: expected top, outcome, retention ms, tombstone ms, '1' to end it though its lease
-- still runs, the end mark's content, then the frames that tell readers.
-- Its entries have fields of their own: 's' the first frame, 't' the others, 'sealed' the end mark. Where the store
-- lost entries, readers may have seen events under these numbers, and must not take the seal for what follows those.
-- Answers {code, top}: 1 sealed, 3 MISMATCH, 4 GONE, 5 already ended, 6 the producer is alive.
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
if ARGV[5] ~= '1' and tonumber(m[3]) > ms then
  return { 6, top }
end
if top ~= tonumber(ARGV[1]) then
  return { 3, top }
end
for i = 7, #ARGV do
  top = top + 1
  redis.call('XADD', log, string.format('%d-0', top), i == 7 and 's' or 't', ARGV[i])
end
redis.call('XADD', log, string.format('%d-1', top), 'sealed', ARGV[6])
redis.call('HSET', meta, 'top', string.format('%d', top), 'end', ARGV[2], 'ended', string.format('%d', ms),
  'fence', string.format('%d', m[4] + 1))
redis.call('PEXPIRE', log, ARGV[3])
redis.call('PEXPIRE', meta, ARGV[3] + ARGV[4])
redis.call('SPUBLISH', log, '')
return { 1, top }
