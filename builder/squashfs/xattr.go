package squashfs

import (
	"math"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/internal/fault"
)

// xattrTable holds every different set of extended attributes once.
type xattrTable struct {
	pairs *table // names and values of all sets
	ids   []byte // one record a set: where its pairs are, how many, how long
}

// collectXattrs gives each inode the index of its set. It returns nil if no file
// has extended attributes.
func collectXattrs(enc *zstd.Encoder, inodes []*inode) (*xattrTable, error) {
	t := &xattrTable{pairs: newTable(enc)}
	sets := map[string]uint32{}
	for _, n := range inodes {
		if len(n.entry.Xattrs) == 0 {
			continue
		}
		set, err := encodeSet(n.entry.Path, n.entry.Xattrs)
		if err != nil {
			return nil, err
		}
		i, ok := sets[string(set)]
		if !ok {
			i = uint32(len(sets))
			sets[string(set)] = i
			t.ids = le.AppendUint64(t.ids, t.pairs.ref())
			t.ids = le.AppendUint32(t.ids, uint32(len(n.entry.Xattrs)))
			t.ids = le.AppendUint32(t.ids, uint32(len(set)))
			t.pairs.add(set)
		}
		n.xattr = i
	}
	if len(sets) == 0 {
		return nil, nil
	}
	return t, nil
}

// encodeSet writes names and values in the order of the names.
func encodeSet(path string, xattrs map[string][]byte) ([]byte, error) {
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		names = append(names, name)
	}
	sort.Strings(names)
	var b []byte
	for _, name := range names {
		value := xattrs[name]
		if len(value) > math.MaxUint16 {
			return nil, fault.New(fault.Input, "%s: extended attribute %s has %d bytes; Linux allows 65536", path, name, len(value))
		}
		prefix := -1
		for i, p := range xattrPrefixes {
			if strings.HasPrefix(name, p) && len(name) > len(p) && len(name) <= math.MaxUint8 {
				prefix = i
			}
		}
		if prefix < 0 {
			return nil, fault.New(fault.Input, "%s: squashfs cannot hold the extended attribute %q", path, name).
				WithMend("Remove it; only user.*, trusted.* and security.* can be kept.")
		}
		rest := name[len(xattrPrefixes[prefix]):]
		b = le.AppendUint16(b, uint16(prefix))
		b = le.AppendUint16(b, uint16(len(rest)))
		b = append(b, rest...)
		b = le.AppendUint32(b, uint32(len(value)))
		b = append(b, value...)
	}
	return b, nil
}

// write writes the pairs, the sets, and the header that names where both are.
func (t *xattrTable) write(out *counter, enc *zstd.Encoder) (uint64, error) {
	pairs := uint64(out.n)
	if _, err := out.Write(t.pairs.finish()); err != nil {
		return 0, err
	}
	ids := newTable(enc)
	ids.add(t.ids)
	base := uint64(out.n)
	if _, err := out.Write(ids.finish()); err != nil {
		return 0, err
	}
	at := uint64(out.n)
	header := le.AppendUint64(nil, pairs)
	header = le.AppendUint32(header, uint32(len(t.ids)/xattrIDEntry))
	header = le.AppendUint32(header, 0)
	for _, s := range ids.starts {
		header = le.AppendUint64(header, base+uint64(s))
	}
	_, err := out.Write(header)
	return at, err
}
