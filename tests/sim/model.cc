#include "tests/sim/model.h"

#include <algorithm>

namespace livemv::sim {
namespace {

const std::vector<uint64_t>& Probes() {
  static const std::vector<uint64_t> kProbes = [] {
    std::vector<uint64_t> out;
    for (int64_t base = 0; base <= 12 * 4096; base += 4096)
      for (int64_t d : {-1, 0, 1, 100, 2049})
        if (base + d >= 0)
          out.push_back(static_cast<uint64_t>(base + d));
    return out;
  }();
  return kProbes;
}

std::string Say(int value) {
  return value == Bytes::kAbsent ? "end" : std::to_string(value);
}

std::string Differs(const char* when, uint64_t at, int is,
                    const Bytes& allowed) {
  return std::string(when) + " byte " + std::to_string(at) + " is " + Say(is) +
         ", allowed: " + allowed.ToString();
}

int ByteOf(const std::string& s, uint64_t at) {
  return at < s.size() ? static_cast<uint8_t>(s[at]) : Bytes::kAbsent;
}

}  // namespace

// ------------------------------------------------------------------ bytes

void Bytes::MayHappen(const DataOp& op, uint64_t at) {
  const uint64_t end = op.off + op.len;
  switch (op.kind) {
    case DataOp::kWrite:
      if (at < end && Has(kAbsent))
        Set(0);
      if (at >= op.off && at < end)
        Set(op.value);
      break;
    case DataOp::kTruncate:
      if (at >= op.off)
        Set(kAbsent);
      else if (Has(kAbsent))
        Set(0);
      break;
    case DataOp::kZero: {
      auto present = bits_;
      present.reset(kAbsent);
      if (at >= op.off && at < end && present.any())
        Set(0);
      break;
    }
  }
}

std::string Bytes::ToString() const {
  std::string out;
  for (int i = 0; i <= kAbsent; i++)
    if (Has(i))
      out += (out.empty() ? "" : " ") + Say(i);
  return out;
}

void FileData::Reset(std::string content) {
  content_ = std::move(content);
  log_.clear();
  durable_.assign(Probes().size(), {});
  for (size_t p = 0; p < Probes().size(); p++)
    durable_[p].Set(At(Probes()[p]));
}

size_t FileData::Begin(const DataOp& op) {
  log_.push_back(op);
  for (size_t p = 0; p < Probes().size(); p++)
    durable_[p].MayHappen(op, Probes()[p]);
  return log_.size() - 1;
}

void FileData::Apply(const DataOp& op, uint64_t done) {
  if (op.kind == DataOp::kTruncate) {
    if (done != 0)
      content_.resize(op.off, 0);
    return;
  }
  const uint64_t end = op.kind == DataOp::kWrite
                           ? op.off + done
                           : std::min<uint64_t>(op.off + op.len,
                                                content_.size());
  if (done == 0 || op.off >= end)
    return;
  if (content_.size() < end)
    content_.resize(end, 0);
  std::fill(content_.begin() + static_cast<ptrdiff_t>(op.off),
            content_.begin() + static_cast<ptrdiff_t>(end),
            static_cast<char>(op.kind == DataOp::kWrite ? op.value : 0));
}

void FileData::End(size_t index, uint64_t done) {
  log_[index].done = true;
  Apply(log_[index], done);
}

std::string FileData::EndAsSeen(size_t index, const std::string& now) {
  log_[index].done = true;
  for (uint64_t at = 0; at < std::max(now.size(), content_.size()); at++) {
    if (ByteOf(now, at) == At(at))
      continue;
    Bytes allowed;
    allowed.Set(At(at));
    allowed.MayHappen(log_[index], at);
    if (!allowed.Has(ByteOf(now, at)))
      return Differs("after a failed operation", at, ByteOf(now, at), allowed);
  }
  content_ = now;
  return {};
}

std::string FileData::AdoptAfterDeath(const std::string& now) {
  std::string wrong;
  for (uint64_t at = 0;
       wrong.empty() && at < std::max(now.size(), content_.size()); at++) {
    if (ByteOf(now, at) == At(at))
      continue;
    Bytes allowed;
    allowed.Set(At(at));
    for (const DataOp& op : log_)
      if (!op.done)
        allowed.MayHappen(op, at);
    if (!allowed.Has(ByteOf(now, at)))
      wrong = Differs("after a kill", at, ByteOf(now, at), allowed);
  }
  for (DataOp& op : log_)
    op.done = true;
  content_ = now;
  return wrong;
}

std::string FileData::AdoptAfterCut(const std::string& now) {
  for (size_t p = 0; p < Probes().size(); p++) {
    const int is = ByteOf(now, Probes()[p]);
    if (!durable_[p].Has(is))
      return Differs("after a power cut", Probes()[p], is, durable_[p]);
  }
  Reset(now);
  return {};
}

FileData::Watch FileData::Start() const {
  Watch w;
  w.content = content_;
  for (const DataOp& op : log_)
    if (!op.done)
      w.under_way.push_back(op);
  w.since = log_.size();
  return w;
}

bool FileData::Quiet(const Watch& w) const {
  return w.under_way.empty() && w.since == log_.size();
}

Bytes FileData::Allowed(const Watch& w, uint64_t at) const {
  Bytes b;
  b.Set(ByteOf(w.content, at));
  for (const DataOp& op : w.under_way)
    b.MayHappen(op, at);
  for (size_t i = w.since; i < log_.size(); i++)
    b.MayHappen(log_[i], at);
  return b;
}

std::string FileData::CheckRead(const Watch& w, uint64_t off, uint64_t len,
                                const std::string& got) const {
  if (Quiet(w)) {
    std::string_view want = w.content;
    want = off < want.size() ? want.substr(off, len) : std::string_view();
    if (got == want)
      return {};
  }
  for (uint64_t i = 0; i < len; i++) {
    const int is = ByteOf(got, i);
    if (is == ByteOf(w.content, off + i))
      continue;
    Bytes allowed = Allowed(w, off + i);
    if (!allowed.Has(is))
      return Differs("read:", off + i, is, allowed);
  }
  return {};
}

std::string FileData::CheckSize(const Watch& w, uint64_t size) const {
  if (!Quiet(w) || size == w.content.size())
    return {};
  return "stat says " + std::to_string(size) + " bytes, there are " +
         std::to_string(w.content.size());
}

void FileData::Synced(const Watch& w) {
  for (size_t p = 0; p < Probes().size(); p++)
    durable_[p] = Allowed(w, Probes()[p]);
}

// ------------------------------------------------------------------ names

Model::Model() {
  root_ = Make(state::kRootId, 0040755);
}

Node* Model::Make(FileId id, mode_t mode) {
  auto node = std::make_unique<Node>();
  node->id = id;
  node->mode = mode;
  node->modes = {mode};
  node->xattrs = {""};
  if (node->IsFile())
    node->data.Reset("");
  Node* raw = node.get();
  nodes_[id] = std::move(node);
  return raw;
}

Node* Model::Find(FileId id) {
  auto it = nodes_.find(id);
  return it == nodes_.end() ? nullptr : it->second.get();
}

std::vector<Node*> Model::Dirs() {
  std::vector<Node*> out{root_};
  for (size_t i = 0; i < out.size(); i++)
    for (const auto& [name, kid] : out[i]->kids)
      if (kid->IsDir())
        out.push_back(kid);
  return out;
}

std::vector<Node*> Model::Objects() {
  std::vector<Node*> out;
  std::set<FileId> met;
  for (Node* dir : Dirs())
    for (const auto& [name, kid] : dir->kids)
      if (met.insert(kid->id).second)
        out.push_back(kid);
  return out;
}

std::vector<Node*> Model::Files() {
  std::vector<Node*> out = Objects();
  std::erase_if(out, [](Node* n) { return !n->IsFile(); });
  return out;
}

bool Model::IsBelow(const Node* node, const Node* dir) {
  if (node == dir)
    return true;
  for (const auto& [name, kid] : dir->kids)
    if (kid->IsDir() && IsBelow(node, kid))
      return true;
  return false;
}

std::set<FileId>& Model::Allowed(FileId dir, const std::string& name) {
  auto [it, fresh] = durable_.try_emplace({dir, name});
  if (fresh)
    it->second.insert(state::kNoFile);
  return it->second;
}

void Model::MayBecome(const NameEffect& e) {
  Allowed(e.dir, e.name).insert(e.becomes);
}

void Model::Put(Node* dir, const std::string& name, Node* node) {
  dir->kids[name] = node;
  node->links++;
  MayBecome({dir->id, name, node->id});
}

void Model::Take(Node* dir, const std::string& name) {
  auto it = dir->kids.find(name);
  it->second->links--;
  dir->kids.erase(it);
}

size_t Model::BeginChange(std::vector<NameEffect> effects) {
  for (const NameEffect& e : effects)
    MayBecome(e);
  changes_.push_back({std::move(effects), false});
  return changes_.size() - 1;
}

Model::Watch Model::Start() {
  Watch w;
  for (const auto& [key, allowed] : durable_)
    w.now[key] = {state::kNoFile};
  for (Node* dir : Dirs())
    for (const auto& [name, kid] : dir->kids) {
      w.now[{dir->id, name}] = {kid->id};
      w.was[{dir->id, name}] = kid->id;
    }
  for (const Change& change : changes_)
    if (!change.done)
      for (const NameEffect& e : change.effects)
        w.now[{e.dir, e.name}].insert(e.becomes);
  w.since = changes_.size();
  return w;
}

void Model::Synced(const Watch& w, const Node* node) {
  auto now = w.now;
  for (size_t i = w.since; i < changes_.size(); i++)
    for (const NameEffect& e : changes_[i].effects) {
      auto [it, fresh] = now.try_emplace({e.dir, e.name});
      if (fresh)  // a name that was not when the watch began
        it->second.insert(state::kNoFile);
      it->second.insert(e.becomes);
    }
  for (auto& [key, allowed] : now) {
    // A name that node only may have got since: what the name was before may
    // not be durable either.
    if (auto was = w.was.find(key);
        node != nullptr && (was == w.was.end() || was->second != node->id))
      continue;
    // What a maker that is still at work makes has a number by now, maybe.
    if (allowed.contains(kNewFile)) {
      allowed.insert(durable_[key].begin(), durable_[key].end());
      continue;
    }
    durable_[key] = allowed;
  }
}

std::string Model::Adopt(const Seen& seen, bool after_cut) {
  // Which names may be what.
  Watch exact = Start();
  for (const auto& [dir, object] : seen) {
    if ((object.mode & 0170000) != 0040000)
      continue;
    std::set<std::string> names;
    for (const auto& [key, allowed] : after_cut ? durable_ : exact.now)
      if (key.first == dir)
        names.insert(key.second);
    for (const auto& [name, kid] : object.kids)
      names.insert(name);
    for (const std::string& name : names) {
      auto it = object.kids.find(name);
      const FileId is = it == object.kids.end() ? state::kNoFile : it->second;
      std::set<FileId> allowed{state::kNoFile};
      if (after_cut)
        allowed = Allowed(dir, name);
      else if (auto at = exact.now.find({dir, name}); at != exact.now.end())
        allowed = at->second;
      const bool made = allowed.contains(kNewFile) && Find(is) == nullptr;
      if (!allowed.contains(is) && !made)
        return std::string(after_cut ? "after a power cut" : "after a kill") +
               " name \"" + name + "\" of directory " + std::to_string(dir) +
               " is " + std::to_string(is);
    }
  }
  for (const auto& [id, object] : seen) {
    Node* node = Find(id);
    if (node == nullptr) {
      if (object.size != 0 && (object.mode & 0170000) == 0100000)
        return "an unknown file of " + std::to_string(object.size) + " bytes";
      node = Make(id, object.mode);
      node->text = object.text;
      continue;
    }
    if (!node->modes.contains(object.mode))
      return "mode " + std::to_string(object.mode) + " of " +
             std::to_string(id) + " was never set";
    if (!node->xattrs.contains(object.xattr))
      return "xattr \"" + object.xattr + "\" of " + std::to_string(id) +
             " was never set";
    if (node->IsFile()) {
      std::string wrong = after_cut
                              ? node->data.AdoptAfterCut(object.content)
                              : node->data.AdoptAfterDeath(object.content);
      if (!wrong.empty())
        return "file " + std::to_string(id) + " " + wrong;
    }
  }
  // It is so now.
  changes_.clear();
  if (after_cut)
    durable_.clear();
  for (auto& [id, node] : nodes_) {
    node->kids.clear();
    node->links = 0;
    node->opening = 0;
    node->opens.clear();
    node->kept.clear();
  }
  for (const auto& [id, object] : seen) {
    Node* node = Find(id);
    node->mode = object.mode;
    node->xattr = object.xattr;
    if (after_cut) {
      node->modes = {node->mode};
      node->xattrs = {node->xattr};
    } else {
      node->modes.insert(node->mode);
      node->xattrs.insert(node->xattr);
    }
    for (const auto& [name, kid] : object.kids) {
      Node* below = Find(kid);
      node->kids[name] = below;
      below->links++;
      if (after_cut)
        durable_[{id, name}] = {kid};
      else
        MayBecome({id, name, kid});
    }
  }
  return {};
}

std::map<std::string, Node*> Model::Paths() {
  std::map<std::string, Node*> out;
  std::vector<std::pair<std::string, Node*>> todo{{"", root_}};
  while (!todo.empty()) {
    auto [prefix, dir] = todo.back();
    todo.pop_back();
    for (const auto& [name, kid] : dir->kids) {
      out[prefix + name] = kid;
      if (kid->IsDir())
        todo.emplace_back(prefix + name + "/", kid);
    }
  }
  return out;
}

}  // namespace livemv::sim
