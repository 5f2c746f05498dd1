"""Lua that runs in the gateway, kept as text: the key check of key-auth with its own SHA-256."""

__all__ = ["KEY_AUTH"]

# Envoy's Lua has no hash function; LuaJIT's bit library is enough for FIPS 180-4.
KEY_AUTH = r"""
local bit = require("bit")
local band, bxor, bnot, rshift, ror, tobit = bit.band, bit.bxor, bit.bnot, bit.rshift, bit.ror, bit.tobit
local K = {}
do
  local found, candidate = 0, 2
  while found < 64 do
    local prime = true
    for divisor = 2, math.floor(math.sqrt(candidate)) do
      if candidate % divisor == 0 then prime = false break end
    end
    if prime then
      found = found + 1
      local root = candidate ^ (1 / 3)
      K[found] = tobit(math.floor((root - math.floor(root)) * 4294967296))
    end
    candidate = candidate + 1
  end
end
local function sha256(text)
  local h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}
  local length = #text
  text = text .. "\128" .. string.rep("\0", (55 - length) % 64) .. "\0\0\0\0"
    .. string.char(band(rshift(length * 8, 24), 255), band(rshift(length * 8, 16), 255),
      band(rshift(length * 8, 8), 255), band(length * 8, 255))
  for start = 1, #text, 64 do
    local w = {}
    for i = 1, 16 do
      local a, b, c, d = text:byte(start + 4 * (i - 1), start + 4 * (i - 1) + 3)
      w[i] = tobit(a * 16777216 + b * 65536 + c * 256 + d)
    end
    for i = 17, 64 do
      local x, y = w[i - 15], w[i - 2]
      local s0 = bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
      local s1 = bxor(ror(y, 17), ror(y, 19), rshift(y, 10))
      w[i] = tobit(w[i - 16] + s0 + w[i - 7] + s1)
    end
    local a, b, c, d, e, f, g, z = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i = 1, 64 do
      local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
      local choose = bxor(band(e, f), band(bnot(e), g))
      local t1 = tobit(z + s1 + choose + K[i] + w[i])
      local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
      local major = bxor(band(a, b), band(a, c), band(b, c))
      local t2 = tobit(s0 + major)
      z, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    h[1], h[2], h[3], h[4] = tobit(h[1] + a), tobit(h[2] + b), tobit(h[3] + c), tobit(h[4] + d)
    h[5], h[6], h[7], h[8] = tobit(h[5] + e), tobit(h[6] + f), tobit(h[7] + g), tobit(h[8] + z)
  end
  local out = {}
  for i = 1, 8 do out[i] = bit.tohex(h[i]) end
  return table.concat(out)
end
local function from_query(path)
  local query = path:match("%?(.*)$")
  if not query then return nil end
  for name, value in query:gmatch("([^&=]+)=([^&]*)") do
    if name == QUERY then
      value = value:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
      return value
    end
  end
  return nil
end
local function refuse(handle, message)
  local answer = {[":status"] = "401", ["content-type"] = "application/json"}
  handle:respond(answer, '{"message":"' .. message .. '"}\n')
end
function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-consumer-username")
  headers:remove("x-credential-identifier")
  local key = headers:get(HEADER) or from_query(headers:get(":path"))
  if not key or key == "" then return refuse(handle, "Missing API key found in request") end
  local consumer = CONSUMERS[sha256("gateshift:" .. key)]
  if not consumer then return refuse(handle, "Invalid API key in request") end
  if HIDE then headers:remove(HEADER) end
  headers:add("x-consumer-username", consumer)
end
"""
