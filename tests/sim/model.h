#pragma once

// What applications may see: names, bytes and modes, and after a power cut
// which of the older values too.
//
// A value that was changed and not made durable by an fsync may be any of the
// values since the last one that was. Bytes are watched so at probe offsets
// around borders of chunks; without a power cut all of them are compared.
//
// Thread contract: fibers of one thread.

#include <bitset>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/state/ids.h"
#include "core/unique_fd.h"

namespace livemv::sim {

using state::FileId;

// Stands for an inode that was being made when its maker died.
inline constexpr FileId kNewFile = ~0ull;

struct DataOp {
  enum Kind : uint8_t { kWrite, kTruncate, kZero } kind = kWrite;
  uint64_t off = 0, len = 0;  // kTruncate: off is the new size
  int value = 0;
  bool done = false;
};

// A set of what one byte may be; kAbsent: past the end.
class Bytes {
 public:
  static constexpr int kAbsent = 256;
  void Set(int value) { bits_.set(static_cast<size_t>(value)); }
  bool Has(int value) const { return bits_.test(static_cast<size_t>(value)); }
  void Add(const Bytes& other) { bits_ |= other.bits_; }
  // Op may happen, or not, or in part.
  void MayHappen(const DataOp& op, uint64_t at);
  std::string ToString() const;

 private:
  std::bitset<257> bits_;
};

class FileData {
 public:
  void Reset(std::string content);  // durably so
  const std::string& content() const { return content_; }
  int At(uint64_t off) const {
    return off < content_.size() ? static_cast<uint8_t>(content_[off])
                                 : Bytes::kAbsent;
  }
  // An operation is under way: the index for the calls below.
  size_t Begin(const DataOp& op);
  // It did this much (kWrite: of op.len; else 0 or all).
  void End(size_t index, uint64_t done);
  // What is really there was read under the file's lock; empty: as allowed by
  // the operation `index`, else what is wrong.
  std::string EndAsSeen(size_t index, const std::string& now);
  // Nothing under way is going to end: its applications are dead.
  std::string AdoptAfterDeath(const std::string& now);
  std::string AdoptAfterCut(const std::string& now);

  // A watch over everything that happens between two points.
  struct Watch {
    std::string content;
    std::vector<DataOp> under_way;
    size_t since = 0;
  };
  Watch Start() const;
  bool Quiet(const Watch& w) const;
  // Empty if a read of [off, off+len) may return got.
  std::string CheckRead(const Watch& w, uint64_t off, uint64_t len,
                        const std::string& got) const;
  std::string CheckSize(const Watch& w, uint64_t size) const;
  // An fsync that began at w succeeded.
  void Synced(const Watch& w);

 private:
  Bytes Allowed(const Watch& w, uint64_t at) const;
  void Apply(const DataOp& op, uint64_t done);

  std::string content_;
  std::vector<DataOp> log_;
  std::vector<Bytes> durable_;  // one a probe
};

// An open file description.
struct OpenFile {
  uint64_t fh = 0;
  int flags = 0;
  bool second = false;  // of the inode under its second number
  // Null: the worker reads and writes it, else the kernel alone.
  std::shared_ptr<core::UniqueFd> backing;
};

struct Node {
  FileId id = state::kNoFile;
  mode_t mode = 0;
  std::map<std::string, Node*> kids;  // of a directory
  int links = 0;
  std::vector<std::shared_ptr<OpenFile>> opens;
  // Of these, between operations: a close may take one.
  std::vector<std::shared_ptr<OpenFile>> kept;
  // Mapped for writing by somebody who has closed it.
  std::shared_ptr<core::UniqueFd> mapping;
  int opening = 0;      // opens that are not answered
  bool second = false;  // the kernel knows it by its second number
  std::string text;  // of a symbolic link
  std::string xattr;
  FileData data;
  std::set<mode_t> modes;          // allowed after a power cut
  std::set<std::string> xattrs;
  bool unlinking = false;  // a name is or was being taken
  int attr_begun = 0, attr_ended = 0;  // changes of them
  bool IsDir() const { return S_ISDIR_(); }
  bool IsFile() const { return (mode & 0170000) == 0100000; }
  bool IsLink() const { return (mode & 0170000) == 0120000; }

 private:
  bool S_ISDIR_() const { return (mode & 0170000) == 0040000; }
};

// What a change does to one name.
struct NameEffect {
  FileId dir;
  std::string name;
  FileId becomes;  // kNoFile: gone; kNewFile: made
};

class Model {
 public:
  Model();
  Node* root() { return root_; }
  Node* Make(FileId id, mode_t mode);
  Node* Find(FileId id);
  const std::map<FileId, std::unique_ptr<Node>>& nodes() { return nodes_; }
  // All that has a path (directories include the root).
  std::vector<Node*> Dirs();
  std::vector<Node*> Files();
  std::vector<Node*> Objects();  // everything but the root
  bool IsBelow(const Node* node, const Node* dir);  // or the same

  void MayBecome(const NameEffect& e);  // begun: after a cut either
  void Put(Node* dir, const std::string& name, Node* node);
  void Take(Node* dir, const std::string& name);

  // Around an fsync of dir (null: of the names of node).
  struct Watch {
    // What each name may be, and what it certainly was made before.
    std::map<std::pair<FileId, std::string>, std::set<FileId>> now;
    std::map<std::pair<FileId, std::string>, FileId> was;
    size_t since = 0;
  };
  Watch Start();
  void Synced(const Watch& w, const Node* node);
  size_t BeginChange(std::vector<NameEffect> effects);
  void EndChange(size_t index) { changes_[index].done = true; }
  // Of a change under way: the number of what it made is known.
  void Made(size_t index, const NameEffect& e) {
    MayBecome(e);
    changes_[index].effects.push_back(e);
  }

  // What an observer found in the tree.
  struct SeenObject {
    FileId id;
    mode_t mode;
    uint64_t size;
    std::string text, xattr;
    std::map<std::string, FileId> kids;
    std::string content;
  };
  using Seen = std::map<FileId, SeenObject>;
  // Empty if it is allowed; then the model is what was seen.
  std::string Adopt(const Seen& seen, bool after_cut);
  // After the fact: what the map of names is now, by "path".
  std::map<std::string, Node*> Paths();

 private:
  struct Change {
    std::vector<NameEffect> effects;
    bool done = false;
  };
  std::set<FileId>& Allowed(FileId dir, const std::string& name);

  std::map<FileId, std::unique_ptr<Node>> nodes_;
  Node* root_;
  std::map<std::pair<FileId, std::string>, std::set<FileId>> durable_;
  std::vector<Change> changes_;
};

}  // namespace livemv::sim
