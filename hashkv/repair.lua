-- Writes a bucket anew if it has left the compact encoding.
-- KEYS: the bucket. ARGV: the pairs that one HSET may bring, and a bucket.
-- Returns 0 if the bucket is empty, 1 if it is compact, 2 if it is again, 3 if it
-- cannot be. Fails with WRONGTYPE if it is no hash.
local function compact()
  local encoding = redis.call('OBJECT', 'ENCODING', KEYS[1])
  return encoding == 'listpack' or encoding == 'listpackex' or encoding == 'ziplist'
end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then return redis.error_reply('WRONGTYPE not a bucket') end
local n = redis.call('HLEN', KEYS[1])
if n == 0 then return 0 end
if compact() then return 1 end
if n > tonumber(ARGV[2]) then return 3 end

local stored = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
local size = 2 * tonumber(ARGV[1])
for i = 1, #stored, size do
  redis.call('HSET', KEYS[1], unpack(stored, i, math.min(i + size - 1, #stored)))
end
return compact() and 2 or 3
