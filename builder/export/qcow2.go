package export

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/slipwayhq/slipway/builder/disk"
)

// From QEMU's docs/interop/qcow2.txt, sections "Header", "Host cluster
// management" and "Cluster mapping".
const (
	qcowMagic        = 0x514649fb
	qcowClusterBits  = 16
	qcowCluster      = 1 << qcowClusterBits
	qcowHeaderLength = 104
	qcowRefcountLog  = 4               // 16-bit refcounts
	qcowRefsPerBlock = qcowCluster / 2 // of two bytes
	qcowEntries      = qcowCluster / 8 // of an L2 table or of the refcount table
	qcowCopied       = uint64(1) << 63 // refcount is exactly one
)

// QCOW2 writes the disk as a qcow2 image of version 3: all tables first, then
// the clusters that hold data, in the order of the disk. Clusters are not
// compressed: nearly all of them are pieces of layers, which are.
func QCOW2(ctx context.Context, w io.Writer, im *disk.Image) error {
	runs, err := dataRuns(im, qcowCluster)
	if err != nil {
		return err
	}
	if _, err := w.Write(qcowTables(im.Size(), runs)); err != nil {
		return err
	}
	s := newSink(ctx, w)
	for _, r := range runs {
		if err := s.write(im, r.first*qcowCluster, r.count*qcowCluster); err != nil {
			return err
		}
	}
	return nil
}

// qcowTables makes everything that stands before the data: header, L1 table, L2
// tables, refcount table, refcount blocks.
func qcowTables(size int64, runs []unitRun) []byte {
	be := binary.BigEndian
	var data int64
	var l2s []int64 // the parts of the disk that need an L2 table, by number
	for _, r := range runs {
		data += r.count
		for i := r.first / qcowEntries; i <= (r.first+r.count-1)/qcowEntries; i++ {
			if len(l2s) == 0 || l2s[len(l2s)-1] != i {
				l2s = append(l2s, i)
			}
		}
	}
	l1Size := max(ceil(size, qcowCluster*qcowEntries), 1)
	l1Clusters := ceil(l1Size, qcowEntries)
	// Refcount blocks count themselves, so their number is a fixed point.
	var total, blocks, tableClusters int64
	for {
		total = 1 + l1Clusters + int64(len(l2s)) + tableClusters + blocks + data
		b := ceil(total, qcowRefsPerBlock)
		t := ceil(b, qcowEntries)
		if b == blocks && t == tableClusters {
			break
		}
		blocks, tableClusters = b, t
	}
	l1At := int64(qcowCluster)
	l2At := l1At + l1Clusters*qcowCluster
	tableAt := l2At + int64(len(l2s))*qcowCluster
	blocksAt := tableAt + tableClusters*qcowCluster
	dataAt := blocksAt + blocks*qcowCluster

	out := make([]byte, dataAt)
	be.PutUint32(out[0:], qcowMagic)
	be.PutUint32(out[4:], 3)
	be.PutUint32(out[20:], qcowClusterBits)
	be.PutUint64(out[24:], uint64(size))
	be.PutUint32(out[36:], uint32(l1Size))
	be.PutUint64(out[40:], uint64(l1At))
	be.PutUint64(out[48:], uint64(tableAt))
	be.PutUint32(out[56:], uint32(tableClusters))
	be.PutUint32(out[96:], qcowRefcountLog)
	be.PutUint32(out[100:], qcowHeaderLength)

	l2Of := map[int64]int64{}
	for i, part := range l2s {
		at := l2At + int64(i)*qcowCluster
		l2Of[part] = at
		be.PutUint64(out[l1At+8*part:], uint64(at)|qcowCopied)
	}
	host := dataAt
	for _, r := range runs {
		for u := r.first; u < r.first+r.count; u++ {
			be.PutUint64(out[l2Of[u/qcowEntries]+8*(u%qcowEntries):], uint64(host)|qcowCopied)
			host += qcowCluster
		}
	}
	for i := range blocks {
		be.PutUint64(out[tableAt+8*i:], uint64(blocksAt+i*qcowCluster))
	}
	for i := range total {
		be.PutUint16(out[blocksAt+2*i:], 1)
	}
	return out
}

func ceil(n, unit int64) int64 { return (n + unit - 1) / unit }
