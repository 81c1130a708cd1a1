-- Splits a bucket into its two halves and leaves a tombstone in its place.
-- KEYS: the bucket, its halves. ARGV: the tombstone, the pairs that one HSET may
-- bring, then for each entry its field, its next field and its half, 1 or 2.
-- Returns 1 if the bucket is split, 0 if its fields are not those of ARGV.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' and redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end

local stored = {}
if kind ~= 'none' then stored = redis.call('HGETALL', KEYS[1]) end
if #stored / 2 ~= (#ARGV - 2) / 3 then return 0 end
local value = {}
for i = 1, #stored, 2 do value[stored[i]] = stored[i + 1] end
for i = 3, #ARGV, 3 do
  if not value[ARGV[i]] then return 0 end
end

-- Nothing is written above this line. Without room for more the first HSET fails
-- and no later one: Redis lets a script end that has begun to write.

-- Halves of a bucket that is there are left from before a failover that brought
-- it back, and nobody looks into them. Those of one that is not there may be in
-- use: its tombstone has expired if this process has slept for an hour.
if kind == 'hash' and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  redis.call('DEL', KEYS[2], KEYS[3])
end

local chunk = 2 * tonumber(ARGV[2])
local pairs = { {}, {} }
for i = 3, #ARGV, 3 do
  local half = tonumber(ARGV[i + 2])
  local p = pairs[half]
  p[#p + 1] = ARGV[i + 1]
  p[#p + 1] = value[ARGV[i]]
  if #p >= chunk then
    redis.call('HSET', KEYS[half + 1], unpack(p))
    pairs[half] = {}
  end
end
for half = 1, 2 do
  if #pairs[half] > 0 then redis.call('HSET', KEYS[half + 1], unpack(pairs[half])) end
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
