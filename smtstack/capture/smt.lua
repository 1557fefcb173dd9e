-- Wireshark dissector for SMT and Homa as smtnet, the SMT kernel module (branch main) and upstream Homa speak them:
-- IP protocols 146 and 253, DATA in the shape of TCP and what of TCP's has the pattern of upstream Homa, the handshake
-- plane of SMT, and the plaintext twins of "smtnet pcap decrypt".
-- The formats are described in docs/protocol.md. Runs in Wireshark 4.0 (Lua 5.2) and later.

local DATA, GRANT, RESEND, UNKNOWN, BUSY, CUTOFFS, FREEZE, NEED_ACK, ACK =
  0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18
local TYPES = {
  [DATA] = "DATA", [GRANT] = "GRANT", [RESEND] = "RESEND", [UNKNOWN] = "UNKNOWN", [BUSY] = "BUSY",
  [CUTOFFS] = "CUTOFFS", [FREEZE] = "FREEZE", [NEED_ACK] = "NEED_ACK", [ACK] = "ACK",
}
-- Shortest packet of each type, in bytes.
local LENGTHS = {
  [DATA] = 41, [GRANT] = 33, [RESEND] = 37, [UNKNOWN] = 28, [BUSY] = 28, [CUTOFFS] = 62, [FREEZE] = 28,
  [NEED_ACK] = 28, [ACK] = 90,
}
local PROTOCOL, PROTOCOL_LINUX, PROTOCOL_TCP, OVERLAY_MARK = 146, 253, 6, 0xa210
local COMMON_LEN, DATA_LEN, ACK_LEN, PROOF_LEN, MAX_ACKS, SEGMENT_HEADER_LEN = 28, 40, 90, 16, 5, 20
local MAX_FLIGHT = 65536
-- Upstream Homa: where its type is, the pattern by which it is known, headers, and an entry of an ACK.
local UPSTREAM_TYPE, UPSTREAM_FLAGS, UPSTREAM_URGENT, UPSTREAM_DATA_LEN, UPSTREAM_ENTRY = 11, 0x06, 0xb97d, 56, 10
local UPSTREAM_LENGTHS = {
  [DATA] = 57, [GRANT] = 33, [RESEND] = 37, [UNKNOWN] = 28, [BUSY] = 28, [CUTOFFS] = 62, [FREEZE] = 28,
  [NEED_ACK] = 28, [ACK] = 80,
}

local KINDS = {
  [1] = "client hello", [2] = "server hello", [3] = "client finish", [4] = "server done", [5] = "0-RTT hello",
  [6] = "0-RTT answer", [7] = "close", [8] = "closed", [9] = "refused",
}
local REFUSALS = {
  [1] = "bad flight", [2] = "TLS", [3] = "parameters", [4] = "not accepted", [5] = "certificate",
  [6] = "ticket unknown", [7] = "ticket expired", [8] = "ticket revoked", [9] = "replayed", [10] = "busy",
  [11] = "no handshake", [12] = "crossed",
}
-- What the fields of a flight are, by kind.
local FLIGHTS = {
  [1] = {"handshake", "offer", "tls"}, [2] = {"offer", "tls"}, [3] = {"handshake", "tls"}, [4] = {"tls", "proof"},
  [5] = {"early"}, [6] = {"early"}, [7] = {"proof"}, [8] = {}, [9] = {"code", "text", "tls", "proof"},
}

local smt = Proto("smt", "SMT and Homa transport")
local twin = Proto("smt.plaintext", "SMT plaintext")
local shaped = Proto("smt.shaped", "TCP, or Homa in its shape")

local F = {
  sport = ProtoField.uint16("smt.srcport", "Source port"),
  dport = ProtoField.uint16("smt.dstport", "Destination port"),
  port = ProtoField.uint16("smt.port", "Source or destination port"),
  packet_offset = ProtoField.uint32("smt.packet_offset", "Offset of the packet in its segment"),
  segment_size = ProtoField.uint16("smt.segment_size", "Payload bytes of the segment's packets"),
  epoch = ProtoField.uint32("smt.epoch", "Key epoch"),
  flags = ProtoField.uint8("smt.flags", "Flags", base.HEX),
  placed = ProtoField.bool("smt.flags.placed", "Placed: a NIC wrote the packet's offset", 8, nil, 0x01),
  incast = ProtoField.bool("smt.flags.incast", "Incast: the response comes by grant", 8, nil, 0x02),
  handshake = ProtoField.bool("smt.flags.handshake", "Handshake plane", 8, nil, 0x04),
  data_offset = ProtoField.uint8("smt.data_offset", "Data offset, for TSO engines", base.HEX),
  type = ProtoField.uint8("smt.type", "Type", base.HEX, TYPES),
  segment_offset = ProtoField.uint32("smt.segment_offset", "Offset of the segment in its message"),
  sender_id = ProtoField.uint64("smt.sender_id", "Id as its sender has it"),
  id = ProtoField.uint64("smt.id", "RPC"),
  role = ProtoField.string("smt.role", "Sender's role in the RPC"),
  message_length = ProtoField.uint32("smt.message_length", "Message length"),
  incoming = ProtoField.uint32("smt.incoming", "Bytes sent without further grants"),
  cutoff_version = ProtoField.uint16("smt.cutoff_version", "Version of the cutoffs"),
  retransmit = ProtoField.uint8("smt.retransmit", "Retransmission"),
  packet_index = ProtoField.uint8("smt.packet_index", "Number in its segment, added to the IP identification"),
  offset = ProtoField.uint32("smt.offset", "Offset in the message"),
  payload = ProtoField.bytes("smt.payload", "Payload"),
  sealed = ProtoField.bool("smt.sealed", "Sealed"),
  grant_offset = ProtoField.uint32("smt.grant.offset", "May send up to"),
  priority = ProtoField.uint8("smt.priority", "Priority"),
  resend_offset = ProtoField.uint32("smt.resend.offset", "Send again from"),
  resend_length = ProtoField.uint32("smt.resend.length", "Send again, bytes"),
  cutoff = ProtoField.uint32("smt.cutoff", "Longest message"),
  ack_count = ProtoField.uint16("smt.ack.count", "Further RPCs acknowledged"),
  ack_id = ProtoField.uint64("smt.ack.id", "RPC acknowledged"),
  ack_client_port = ProtoField.uint16("smt.ack.client_port", "Its client's port"),
  ack_server_port = ProtoField.uint16("smt.ack.server_port", "Its server's port"),
  proof = ProtoField.bytes("smt.ack.proof", "Proof"),
  upstream = ProtoField.bool("smt.upstream", "Upstream Homa's format"),
  tcp_shaped = ProtoField.bool("smt.tcp_shaped", "In the shape of TCP"),
  sequence = ProtoField.uint32("smt.sequence", "Sequence, to which a segmenting NIC adds"),
  tcp_flags = ProtoField.uint8("smt.tcp_flags", "TCP's flags", base.HEX),
  urgent = ProtoField.uint16("smt.urgent", "TCP's urgent pointer", base.HEX),
  place = ProtoField.uint32("smt.place", "Offset in the message; 4294967295: as the sequence says"),
  record_type = ProtoField.uint8("smt.record.type", "TLS record type"),
  record_version = ProtoField.uint16("smt.record.version", "TLS record version", base.HEX),
  record_length = ProtoField.uint16("smt.record.length", "TLS record length"),
  record_nonce = ProtoField.uint64("smt.record.nonce", "Explicit nonce", base.HEX),
  segment_header_offset = ProtoField.uint32("smt.segment_header.offset", "Offset of the data in the message"),
  segment_header_length = ProtoField.uint32("smt.segment_header.length", "Bytes of data"),
  flight_version = ProtoField.uint8("smt.flight.version", "Flight version"),
  flight_kind = ProtoField.uint8("smt.flight.kind", "Flight", base.DEC, KINDS),
  flight_handshake = ProtoField.bytes("smt.flight.handshake", "Handshake id"),
  flight_tls = ProtoField.bytes("smt.flight.tls", "TLS"),
  flight_early = ProtoField.bytes("smt.flight.early", "0-RTT hello or answer"),
  flight_proof = ProtoField.bytes("smt.flight.proof", "Proof"),
  flight_code = ProtoField.uint8("smt.flight.code", "Refused because", base.DEC, REFUSALS),
  flight_text = ProtoField.string("smt.flight.text", "In words"),
  offer_index_bits = ProtoField.uint8("smt.offer.index_bits", "Bits of the record index"),
  offer_max_message = ProtoField.uint32("smt.offer.max_message", "Longest message"),
  offer_mtu = ProtoField.uint16("smt.offer.mtu", "MTU"),
  offer_cipher = ProtoField.uint8("smt.offer.cipher", "Cipher", base.DEC,
    {[0] = "AES-128-GCM", [1] = "AES-256-GCM", [2] = "CHACHA20-POLY1305", [0x80] = "the overlay, no cipher"}),
  offer_padding = ProtoField.string("smt.offer.padding", "Padding"),
  record = ProtoField.uint32("smt.plaintext.record", "Record of the message, from 1"),
  records = ProtoField.uint32("smt.plaintext.records", "Records of the message"),
  number = ProtoField.string("smt.plaintext.number", "Record number"),
  offload = ProtoField.string("smt.plaintext.offload", "Sealed by"),
  data = ProtoField.bytes("smt.plaintext.data", "Data"),
}
local fields = {}
for _, field in pairs(F) do fields[#fields + 1] = field end
smt.fields = fields

local malformed = ProtoExpert.new("smt.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local refused = ProtoExpert.new("smt.refused", "Session refused", expert.group.RESPONSE_CODE, expert.severity.WARN)
local resent = ProtoExpert.new("smt.retransmission", "Retransmission", expert.group.SEQUENCE, expert.severity.NOTE)
smt.experts = {malformed, refused, resent}

local ip_id, ip_src, ip_dst = Field.new("ip.id"), Field.new("ip.src"), Field.new("ip.dst")
local comments = Field.new("frame.comment")

-- What was learned on the first pass, by message and by frame number.
local messages, seen = {}, {}

function smt.init()
  messages, seen = {}, {}
end

local function last(extractor)
  local found = {extractor()}
  return found[#found]
end

local function complain(tree, text)
  tree:add_proto_expert_info(malformed, text)
end

-- Per-frame memory, and whether this is the first time that the frame is looked at.
local function memory(pinfo)
  local known = seen[pinfo.number]
  if known then return known, false end
  known = {}
  seen[pinfo.number] = known
  return known, true
end

local function message_of(pinfo, tvb)
  local src, dst = last(ip_src), last(ip_dst)
  local key = tostring(src and src.value) .. ">" .. tostring(dst and dst.value) .. " " ..
    tostring(tvb(0, 4):bytes()) .. tostring(tvb(20, 8):bytes()) .. tostring(tvb(10, 1):bytes()) ..
    tvb(11, 1):bitfield(5)
  local message = messages[key]
  if not message then
    -- next_record: by segment, where the next record begins. parts: payloads of a flight by offset.
    message = {next_record = {}, parts = {}}
    messages[key] = message
  end
  return message
end

-- TLS 1.3 records of a packet whose payload stands at `pos` of the message, in the segment at `segment`.
-- Returns how many headers there are; nil if nothing is known of the message.
local function find_records(message, segment, pos, payload, memo)
  local at = pos == segment and 0 or nil
  local next_record = message.next_record[segment]
  if not at and next_record and next_record >= pos and next_record < pos + payload:len() then
    at = next_record - pos
  end
  memo.records = {}
  if not at then
    memo.sealed = next_record ~= nil
    return
  end
  while at + 5 <= payload:len() do
    if payload(at, 3):uint() ~= 0x170303 or payload(at + 3, 2):uint() < 17 then break end
    memo.records[#memo.records + 1] = at
    at = at + 5 + payload(at + 3, 2):uint()
    message.next_record[segment] = pos + at
  end
  memo.sealed = #memo.records > 0 or next_record ~= nil
end

local function add_record(tree, range, size, nonce)
  local shown = math.min(size, range:len())
  local sub = tree:add(smt, range(0, shown), string.format("TLS record, %d bytes", size))
  sub:add(F.record_type, range(0, 1))
  sub:add(F.record_version, range(1, 2))
  sub:add(F.record_length, range(3, 2))
  if nonce then sub:add(F.record_nonce, range(5, 8)) end
end

-- Plain Homa of the kernel module: a segment header in clear before each piece of data.
local function add_segment_headers(tree, payload, length)
  local at = 0
  while at + SEGMENT_HEADER_LEN <= payload:len() do
    local offset, size = payload(at, 4):uint(), payload(at + 4, 4):uint()
    if size == 0 or offset + size > length or at + SEGMENT_HEADER_LEN + size > payload:len() then return at > 0 end
    local sub = tree:add(smt, payload(at, SEGMENT_HEADER_LEN + size), "Segment of " .. size .. " bytes")
    sub:add(F.segment_header_offset, payload(at, 4))
    sub:add(F.segment_header_length, payload(at + 4, 4))
    sub:add(F.ack_id, payload(at + 8, 8))
    sub:add(F.ack_client_port, payload(at + 16, 2))
    sub:add(F.ack_server_port, payload(at + 18, 2))
    at = at + SEGMENT_HEADER_LEN + size
  end
  return at > 0
end

local function add_offer(tree, range)
  if range:len() < 9 or range:len() ~= 9 + range(7, 1):uint() + range(8, 1):uint() then
    complain(tree, "an offer of parameters has the wrong length")
    return
  end
  local sub = tree:add(smt, range, "Parameters")
  sub:add(F.offer_index_bits, range(0, 1))
  sub:add(F.offer_max_message, range(1, 4))
  sub:add(F.offer_mtu, range(5, 2))
  local ciphers, name = range(7, 1):uint(), range(8, 1):uint()
  for n = 0, ciphers - 1 do sub:add(F.offer_cipher, range(9 + n, 1)) end
  if name > 0 then sub:add(F.offer_padding, range(9 + ciphers, name)) end
end

-- A whole message of the handshake plane; returns what it is, for the info column.
local function add_flight(tree, range)
  if range:len() < 2 then
    complain(tree, "a flight is cut short")
    return "flight"
  end
  local kind = range(1, 1):uint()
  local sub = tree:add(smt, range, "Handshake flight: " .. (KINDS[kind] or "unknown"))
  sub:add(F.flight_version, range(0, 1))
  sub:add(F.flight_kind, range(1, 1))
  local names = FLIGHTS[kind]
  if not names then
    complain(sub, "unknown kind of flight")
    return "flight of unknown kind " .. kind
  end
  local info, at, count = KINDS[kind], 2, 0
  while at < range:len() do
    if at + 2 > range:len() or at + 2 + range(at, 2):uint() > range:len() then
      complain(sub, "a flight is cut short")
      return info
    end
    local size = range(at, 2):uint()
    count = count + 1
    local name = names[count]
    if name and size > 0 then
      local value = range(at + 2, size)
      if name == "offer" then
        add_offer(sub, value)
      elseif name == "code" then
        sub:add(F.flight_code, value(0, 1))
        info = info .. " (" .. (REFUSALS[value(0, 1):uint()] or "unknown reason") .. ")"
        sub:add_proto_expert_info(refused, info)
      else
        sub:add(F["flight_" .. name], value)
      end
      if name == "handshake" and size == 16 then
        info = info .. " " .. string.lower(tostring(value(0, 8):bytes()))
      end
    end
    at = at + 2 + size
  end
  if count ~= #names then
    complain(sub, string.format("a flight with %d fields, not %d", count, #names))
  end
  return info
end

-- Collects a flight of several packets; its bytes if this packet completes it.
local function collect(message, pos, payload, length)
  if length > MAX_FLIGHT or message.flight then return message.flight end
  message.parts[pos] = message.parts[pos] or payload:bytes()
  local whole, at = ByteArray.new(), 0
  while at < length do
    local part = message.parts[at]
    if not part or part:len() == 0 then return nil end
    whole:append(part)
    at = at + part:len()
  end
  message.parts = {}
  message.flight = whole
  return whole
end

local function dissect_flight(tvb, pinfo, tree, pos, payload, length)
  local memo, first = memory(pinfo)
  if first then memo.flight = collect(message_of(pinfo, tvb), pos, payload, length) end
  if not memo.flight then return "part of a flight" end
  if length == payload:len() then return add_flight(tree, payload) end
  return add_flight(tree, memo.flight:tvb("SMT flight")())
end

local function dissect_payload(tvb, pinfo, tree, linux, pos, packet, segment, length)
  local payload = tvb(DATA_LEN)
  tree:add(F.payload, payload)
  local sealed = false
  if linux then
    if packet == 0 and payload:len() >= 13 and payload(0, 3):uint() == 0x170303 then
      add_record(tree, payload, 5 + payload(3, 2):uint(), true)
      sealed = true
    else
      sealed = not add_segment_headers(tree, payload, length)
    end
  else
    local memo, first = memory(pinfo)
    if first then find_records(message_of(pinfo, tvb), segment, pos, payload, memo) end
    for _, at in ipairs(memo.records) do
      add_record(tree, payload(at), 5 + payload(at + 3, 2):uint(), false)
    end
    sealed = memo.sealed
  end
  tree:add(F.sealed, sealed):set_generated()
end

local function dissect_data(tvb, pinfo, tree, linux, handshake)
  local segment = tvb(14, 2):uint() * 65536 + tvb(18, 2):uint()
  tree:add(F.segment_offset, tvb(14, 6), segment)
  tree:add(F.message_length, tvb(28, 4))
  tree:add(F.incoming, tvb(32, 4))
  tree:add(F.cutoff_version, tvb(36, 2))
  local again = tree:add(F.retransmit, tvb(38, 1))
  if tvb(38, 1):uint() ~= 0 then again:add_proto_expert_info(resent) end
  tree:add(F.packet_index, tvb(39, 1))
  local length, size = tvb(28, 4):uint(), tvb:len() - DATA_LEN
  local id = last(ip_id)
  local packet = ((id and id.value or 0) + tvb(39, 1):uint()) % 65536
  if length == 0 then complain(tree, "DATA of a message of length 0") end
  local info
  local pos = segment
  if linux then
    -- Offsets inside a record are not on the wire: packets have numbers there.
    info = string.format("record at %d, packet %d, of %d", segment, packet, length)
  else
    tree:add(F.packet_offset, tvb(4, 4))
    tree:add(F.segment_size, tvb(8, 2))
    pos = segment + (tvb(11, 1):bitfield(7) == 1 and tvb(4, 4):uint() or packet * tvb(8, 2):uint())
    tree:add(F.offset, pos % 4294967296):set_generated()
    info = string.format("[%d..%d) of %d", pos, pos + size, length)
    if pos + size > length then complain(tree, "DATA beyond the end of its message") end
  end
  if handshake then
    return info .. " " .. dissect_flight(tvb, pinfo, tree, pos, tvb(DATA_LEN), length)
  end
  dissect_payload(tvb, pinfo, tree, linux, pos, packet, segment, length)
  return info
end

local function dissect_ack(tvb, tree, linux, handshake)
  local count = tvb(28, 2):uint()
  tree:add(F.ack_count, tvb(28, 2))
  if count > MAX_ACKS then
    complain(tree, "ACK claims " .. count .. " entries; " .. MAX_ACKS .. " fit")
    count = 0
  end
  for n = 0, count - 1 do
    local entry = tvb(30 + 12 * n, 12)
    local sub = tree:add(smt, entry, "Acknowledged: " .. tostring(entry(0, 8):uint64()))
    sub:add(F.ack_id, entry(0, 8))
    sub:add(F.ack_client_port, entry(8, 2))
    sub:add(F.ack_server_port, entry(10, 2))
  end
  if not linux and not handshake and tvb:len() >= ACK_LEN + PROOF_LEN then
    tree:add(F.proof, tvb(ACK_LEN, PROOF_LEN))
    return string.format("and %d more, with proof", count)
  end
  return string.format("and %d more", count)
end

local function dissect_control(tvb, tree, kind, linux, handshake)
  if kind == GRANT then
    tree:add(F.grant_offset, tvb(28, 4))
    tree:add(F.priority, tvb(32, 1), tvb(32, 1):uint() % 8)
    return string.format("up to %d at priority %d", tvb(28, 4):uint(), tvb(32, 1):uint() % 8)
  elseif kind == RESEND then
    tree:add(F.resend_offset, tvb(28, 4))
    tree:add(F.resend_length, tvb(32, 4))
    tree:add(F.priority, tvb(36, 1), tvb(36, 1):uint() % 8)
    return string.format("[%d..%d)", tvb(28, 4):uint(), tvb(28, 4):uint() + tvb(32, 4):uint())
  elseif kind == CUTOFFS then
    for n = 0, 7 do
      tree:add(F.cutoff, tvb(28 + 4 * n, 4)):prepend_text("Priority " .. n .. ": ")
    end
    tree:add(F.cutoff_version, tvb(60, 2))
    return "version " .. tvb(60, 2):uint()
  elseif kind == ACK then
    return dissect_ack(tvb, tree, linux, handshake)
  end
  return ""
end

local function add_id(tree, range, sender_id)
  local server = range(7, 1):bitfield(7) == 1
  tree:add(F.sender_id, range)
  local id = sender_id - (server and 1 or 0)
  tree:add(F.id, range, id):set_generated()
  tree:add(F.role, range, server and "server" or "client"):set_generated()
  return id, server
end

-- Upstream Homa: the same packets in other bytes.
local function dissect_upstream_data(tvb, tree)
  local sequence, place = tvb(4, 4):uint(), tvb(52, 4):uint()
  tree:add(F.sequence, tvb(4, 4))
  tree:add(F.message_length, tvb(28, 4))
  tree:add(F.incoming, tvb(32, 4))
  tree:add(F.ack_id, tvb(36, 8))
  tree:add(F.ack_server_port, tvb(44, 2))
  tree:add(F.cutoff_version, tvb(46, 2))
  local again = tree:add(F.retransmit, tvb(48, 1))
  if tvb(48, 1):uint() ~= 0 then again:add_proto_expert_info(resent) end
  tree:add(F.place, tvb(52, 4))
  tree:add(F.payload, tvb(UPSTREAM_DATA_LEN))
  local length, size = tvb(28, 4):uint(), tvb:len() - UPSTREAM_DATA_LEN
  local pos = place == 0xffffffff and sequence or place
  tree:add(F.offset, pos):set_generated()
  if length == 0 then complain(tree, "DATA of a message of length 0") end
  if pos + size > length then complain(tree, "DATA beyond the end of its message") end
  return string.format("[%d..%d) of %d", pos, pos + size, length)
end

local function dissect_upstream_ack(tvb, tree)
  local count = math.min(tvb(28, 2):uint(), MAX_ACKS)
  tree:add(F.ack_count, tvb(28, 2))
  for n = 0, count - 1 do
    local entry = tvb(30 + UPSTREAM_ENTRY * n, UPSTREAM_ENTRY)
    local sub = tree:add(smt, entry, "Acknowledged: " .. tostring(entry(0, 8):uint64()))
    sub:add(F.ack_id, entry(0, 8))
    sub:add(F.ack_server_port, entry(8, 2))
  end
  return string.format("and %d more", count)
end

local function dissect_upstream(tvb, pinfo, root)
  pinfo.cols.protocol = "Homa"
  local tree = root:add(smt, tvb())
  tree:add(F.upstream, true):set_generated()
  tree:add(F.tcp_shaped, pinfo.match_uint == PROTOCOL_TCP):set_generated()
  pinfo.src_port, pinfo.dst_port = tvb(0, 2):uint(), tvb(2, 2):uint()
  tree:add(F.sport, tvb(0, 2))
  tree:add(F.dport, tvb(2, 2))
  tree:add(F.port, tvb(0, 2)):set_hidden()
  tree:add(F.port, tvb(2, 2)):set_hidden()
  local kind = tvb(UPSTREAM_TYPE, 1):uint()
  tree:add(F.type, tvb(UPSTREAM_TYPE, 1))
  tree:add(F.data_offset, tvb(12, 1))
  tree:add(F.tcp_flags, tvb(13, 1))
  tree:add(F.urgent, tvb(18, 2))
  local id, server = add_id(tree, tvb(20, 8), tvb(20, 8):uint64())
  local name = TYPES[kind]
  if not name then
    complain(tree, "unknown packet type")
    pinfo.cols.info = string.format("unknown type 0x%02x", kind)
    return tvb:len()
  end
  local head = string.format("%s %s%s ", name, tostring(id), server and " response" or "")
  if tvb:len() < UPSTREAM_LENGTHS[kind] then
    complain(tree, string.format("%s of %d bytes, %d expected", name, tvb:len(), UPSTREAM_LENGTHS[kind]))
    pinfo.cols.info = head .. "malformed"
    return tvb:len()
  end
  local info
  if kind == DATA then
    info = dissect_upstream_data(tvb, tree)
  elseif kind == ACK then
    info = dissect_upstream_ack(tvb, tree)
  else
    info = dissect_control(tvb, tree, kind, false, false)
    if kind == RESEND then
      local length = tvb(32, 4):int()
      if length == -1 then info = "all that was sent" end
      if length < -1 then complain(tree, "RESEND of a negative length") end
    end
  end
  pinfo.cols.info = head .. info
  tree:append_text(", " .. head .. info)
  return tvb:len()
end

-- Whether a packet has the pattern of upstream Homa. In IP protocol 6 it tells Homa from TCP. In protocol 146 it need
-- not be there, but its flags are no packet type of ours, nor is its type any of our flags.
local function of_upstream(tvb)
  return tvb:captured_len() >= COMMON_LEN and tvb(13, 1):uint() == UPSTREAM_FLAGS and
    tvb(18, 2):uint() == UPSTREAM_URGENT
end

function smt.dissector(tvb, pinfo, root)
  if pinfo.match_uint == PROTOCOL and of_upstream(tvb) then return dissect_upstream(tvb, pinfo, root) end
  pinfo.cols.protocol = "SMT"
  local tree = root:add(smt, tvb())
  if tvb:len() < COMMON_LEN then
    complain(tree, "too short for a header")
    pinfo.cols.info = "malformed: " .. tvb:len() .. " bytes"
    return tvb:len()
  end
  local ip_protocol = pinfo.match_uint
  local linux = ip_protocol == PROTOCOL_LINUX
  pinfo.src_port, pinfo.dst_port = tvb(0, 2):uint(), tvb(2, 2):uint()
  tree:add(F.sport, tvb(0, 2))
  tree:add(F.dport, tvb(2, 2))
  tree:add(F.port, tvb(0, 2)):set_hidden()
  tree:add(F.port, tvb(2, 2)):set_hidden()
  local kind = tvb(13, 1):uint()
  local handshake = not linux and tvb(11, 1):bitfield(5) == 1
  tree:add(F.type, tvb(13, 1))
  local id, server = add_id(tree, tvb(20, 8), tvb(20, 8):uint64())
  local epoch = ""
  if not linux then
    tree:add(F.epoch, tvb(10, 1))
    local flags = tree:add(F.flags, tvb(11, 1))
    flags:add(F.placed, tvb(11, 1))
    flags:add(F.incast, tvb(11, 1))
    flags:add(F.handshake, tvb(11, 1))
    if not handshake then epoch = " epoch " .. tvb(10, 1):uint() end
  end
  tree:add(F.data_offset, tvb(12, 1))
  local name = TYPES[kind]
  if not name then
    complain(tree, "unknown packet type")
    pinfo.cols.info = string.format("unknown type 0x%02x", kind)
    return tvb:len()
  end
  local head = string.format("%s%s %s%s ", handshake and "HANDSHAKE " or "", name, tostring(id),
    server and " response" or "")
  if tvb:len() < LENGTHS[kind] then
    complain(tree, string.format("%s of %d bytes, %d expected", name, tvb:len(), LENGTHS[kind]))
    pinfo.cols.info = head .. "malformed"
    return tvb:len()
  end
  local info
  if kind == DATA then
    info = dissect_data(tvb, pinfo, tree, linux, handshake)
  else
    info = dissect_control(tvb, tree, kind, linux, handshake)
  end
  pinfo.cols.info = head .. info .. epoch
  tree:append_text(", " .. head .. info .. epoch)
  return tvb:len()
end

-- Plaintext twins: what they are stands in the comment that "smtnet pcap decrypt" gave them.
function twin.dissector(tvb, pinfo, root)
  pinfo.cols.protocol = "SMT plaintext"
  local tree = root:add(twin, tvb())
  for _, comment in ipairs({comments()}) do
    local text = tostring(comment.value)
    local id, role = string.match(text, "^message (%d+) (%a+) ")
    if id then
      pinfo.cols.info = text
      tree:append_text(": " .. text)
      tree:add(F.id, UInt64.new(id)):set_generated()
      tree:add(F.role, role == "response" and "server" or "client"):set_generated()
      local record, records = string.match(text, " %a+ (%d+) of (%d+)")
      record = record or string.match(text, " record (%d+)")
      if record then tree:add(F.record, tonumber(record)):set_generated() end
      if records then tree:add(F.records, tonumber(records)):set_generated() end
      local epoch = string.match(text, ", epoch (%d+)")
      if epoch then tree:add(F.epoch, tonumber(epoch)):set_generated() end
      local number = string.match(text, ", number (0x%x+)")
      if number then tree:add(F.number, number):set_generated() end
      local offload = string.match(text, ", offload: (%a+)")
      if offload then tree:add(F.offload, offload):set_generated() end
    end
  end
  if tvb:len() > 0 then tree:add(F.data, tvb()) end
  return tvb:len()
end

local protocols = DissectorTable.get("ip.proto")
local tcp = protocols:get_dissector(PROTOCOL_TCP)

function shaped.dissector(tvb, pinfo, root)
  if of_upstream(tvb) then return dissect_upstream(tvb, pinfo, root) end
  -- DATA of ours: its mark is a reserved bit. All other TCP goes where it went.
  if tvb:len() > DATA_LEN and tvb(12, 2):uint() == OVERLAY_MARK then return smt.dissector(tvb, pinfo, root) end
  return tcp:call(tvb, pinfo, root)
end

protocols:add(PROTOCOL, smt)
protocols:add(PROTOCOL_LINUX, smt)
protocols:add(PROTOCOL_TCP, shaped)
