"""Lua that runs in the gateway, kept as text: hashes, JSON, and what single plugins do with them."""

__all__ = ["HTTP", "JSON", "KEY_AUTH", "SHA256"]

# Envoy's Lua has no hash function; LuaJIT's bit library is enough for FIPS 180-4.
SHA256 = r"""
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
"""

KEY_AUTH = r"""
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
  headers:remove("x-consumer-custom-id")
  local key = headers:get(HEADER) or from_query(headers:get(":path"))
  if not key or key == "" then return refuse(handle, "Missing API key found in request") end
  local consumer = CONSUMERS[sha256("gateshift:" .. key)]
  if not consumer then return refuse(handle, "Invalid API key in request") end
  if HIDE then headers:remove(HEADER) end
  headers:add("x-consumer-username", consumer)
end
"""

JSON = r"""
local function json_text(value)
  local kind = type(value)
  if kind == "nil" then return "null" end
  if kind == "number" then
    if value == math.floor(value) then return string.format("%d", value) end
    return tostring(value)
  end
  if kind == "boolean" then return tostring(value) end
  if kind == "string" then
    return '"' .. value:gsub('[%c"\\]', function(c) return string.format("\\u%04x", c:byte()) end) .. '"'
  end
  local parts = {}
  if #value > 0 then
    for i, one in ipairs(value) do parts[i] = json_text(one) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for key, one in pairs(value) do parts[#parts + 1] = json_text(tostring(key)) .. ":" .. json_text(one) end
  return "{" .. table.concat(parts, ",") .. "}"
end
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}
local function utf8_of(code)
  if code < 128 then return string.char(code) end
  if code < 2048 then return string.char(192 + math.floor(code / 64), 128 + code % 64) end
  if code < 65536 then
    return string.char(224 + math.floor(code / 4096), 128 + math.floor(code / 64) % 64, 128 + code % 64)
  end
  return string.char(240 + math.floor(code / 262144), 128 + math.floor(code / 4096) % 64,
    128 + math.floor(code / 64) % 64, 128 + code % 64)
end
local json_value
local function json_string(text, at)
  local out = {}
  while true do
    local plain, stop = text:match('^([^"\\]*)()', at)
    out[#out + 1] = plain
    local mark = text:sub(stop, stop)
    if mark == '"' then return table.concat(out), stop + 1 end
    if mark == "" then error("json") end
    local escape = text:sub(stop + 1, stop + 1)
    at = stop + 2
    if escape == "u" then
      local code = tonumber(text:sub(at, at + 3), 16)
      if not code then error("json") end
      at = at + 4
      if code >= 0xd800 and code < 0xdc00 then
        local low = text:match("^\\u(%x%x%x%x)", at)
        if low then
          code = 0x10000 + (code - 0xd800) * 1024 + tonumber(low, 16) - 0xdc00
          at = at + 6
        end
      end
      out[#out + 1] = utf8_of(code)
    else
      out[#out + 1] = ESCAPES[escape] or escape
    end
  end
end
local function json_skip(text, at) return text:match("^%s*()", at) end
function json_value(text, at)
  at = json_skip(text, at)
  local first = text:sub(at, at)
  if first == "{" or first == "[" then
    local found, close = {}, first == "{" and "}" or "]"
    at = json_skip(text, at + 1)
    if text:sub(at, at) == close then return found, at + 1 end
    while true do
      local key
      if first == "{" then
        if text:sub(at, at) ~= '"' then error("json") end
        key, at = json_string(text, at + 1)
        at = json_skip(text, at)
        if text:sub(at, at) ~= ":" then error("json") end
        at = at + 1
      else
        key = #found + 1
      end
      found[key], at = json_value(text, at)
      at = json_skip(text, at)
      local mark = text:sub(at, at)
      at = json_skip(text, at + 1)
      if mark == close then return found, at end
      if mark ~= "," then error("json") end
    end
  end
  if first == '"' then return json_string(text, at + 1) end
  local word, after = text:match("^([%w%.%+%-]+)()", at)
  if word == "true" then return true, after end
  if word == "false" then return false, after end
  if word == "null" then return nil, after end
  local number = tonumber(word or "")
  if not number then error("json") end
  return number, after
end
local function json_data(text)
  local ok, value = pcall(json_value, text, 1)
  if ok then return value end
  return nil
end
"""

HTTP = r"""
local function client_address(handle)
  local address = handle:streamInfo():downstreamRemoteAddress()
  return (address:match("^%[(.*)%]") or address:match("^(.*):%d+$") or address), address:match(":(%d+)$")
end
local function plain_host(headers) return (headers:get(":authority") or ""):gsub(":%d+$", ""):lower() end
local function decoded(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end
local function argument(headers, name)
  for pair in ((headers:get(":path") or ""):match("%?(.*)$") or ""):gmatch("[^&]+") do
    local key, sign, value = pair:match("^([^=]*)(=?)(.*)$")
    if decoded((key:gsub("%+", " "))) == name then
      return sign == "" and "true" or decoded((value:gsub("%+", " ")))
    end
  end
end
-- A decoded value must not end a header.
local function plain(value) return (value:gsub("%c", "")) end
local UNREACHED = {"upstream failure", "upstream request timeout", "upstream connect error", "no healthy"}
local function call(handle, method, headers, body)
  headers[":method"], headers[":path"], headers[":authority"] = method, PATH, AUTHORITY
  local answer, said = handle:httpCall(CLUSTER, headers, body, TIMEOUT)
  local status = tonumber(answer and answer[":status"] or "") or 503
  -- Envoy itself answers so when the service cannot be reached, or not in time.
  if status == 503 or status == 504 then
    for _, words in ipairs(UNREACHED) do
      if (said or ""):sub(1, #words) == words then return nil end
    end
  end
  return status, answer, said
end
"""
