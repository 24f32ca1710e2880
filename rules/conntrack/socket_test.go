package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// part is a message of an answer.
func part(kind, flags uint16, seq uint32, text string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(text)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(binary.NativeEndian.AppendUint32(b, 0), text...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func code(errno int) string {
	return string(binary.NativeEndian.AppendUint32(nil, uint32(-errno)))
}

func TestAsk(t *testing.T) {
	const kind = unix.NFNL_SUBSYS_CTNETLINK << 8
	done := part(unix.NLMSG_DONE, 0, 1, code(0))
	for _, tt := range []struct {
		name   string
		answer [][]byte
		want   string
		err    error
	}{
		{"in one piece", [][]byte{slices.Concat(part(kind, 0, 1, "one"), part(kind, 0, 1, "two"), done)}, "one two", nil},
		{"in several", [][]byte{part(kind, 0, 1, "one"), part(kind, 0, 1, "two"), done}, "one two", nil},
		{"nothing", [][]byte{part(unix.NLMSG_DONE, 0, 1, "")}, "", nil},
		{"acknowledged", [][]byte{part(kind, 0, 1, "one"), part(unix.NLMSG_ERROR, 0, 1, code(0))}, "one", nil},
		{"refused", [][]byte{part(unix.NLMSG_ERROR, 0, 1, code(int(unix.EPERM)))}, "", unix.EPERM},
		{"after an answer to what was asked before", [][]byte{
			part(kind, 0, 0, "late"), part(unix.NLMSG_DONE, 0, 0, code(0)), part(kind, 0, 1, "one"), done,
		}, "one", nil},
		{"with a part missing", [][]byte{part(kind, 0, 1, "one"), part(kind, unix.NLM_F_DUMP_INTR, 1, "two"), done}, "one", errChanged},
		{"cut off", [][]byte{part(kind, 0, 1, "one")[:18], done}, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := fakeKernel(t, tt.answer...).ask(nl.NewNetlinkRequest(kind, 0), func(m []byte) { got = append(got, string(m)) })
			if strings.Join(got, " ") != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

// fakeKernel answers the questions that are asked through the returned table, the first one by the first answer.
func fakeKernel(t *testing.T, answers ...[]byte) *table {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	kernel, socket := os.NewFile(uintptr(pair[0]), "kernel"), os.NewFile(uintptr(pair[1]), "socket")
	t.Cleanup(func() { kernel.Close(); socket.Close() })
	for _, b := range answers {
		if _, err := kernel.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	return &table{querier{socket: socket, b: make([]byte, answerSize)}}
}

// How full the table is gets logged once when it changes.
func TestFull(t *testing.T) {
	usage := func(seq, entries uint32) []byte {
		m := (&nl.Nfgenmsg{}).Serialize()
		m = append(m, nl.NewRtAttr(ctaStatsGlobalEntries, nl.BEUint32Attr(entries)).Serialize()...)
		m = append(m, nl.NewRtAttr(ctaStatsGlobalMax, nl.BEUint32Attr(1000)).Serialize()...)
		return append(part(unix.NFNL_SUBSYS_CTNETLINK<<8|msgGetStats, 0, seq, string(m)), part(unix.NLMSG_ERROR, 0, seq, code(0))...)
	}
	var log bytes.Buffer
	tr := &Tracker{
		o:     Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
		table: fakeKernel(t, usage(1, 799), usage(2, 800), usage(3, 900), usage(4, 750), usage(5, 600)),
	}
	for i, want := range []bool{false, true, true, true, false} {
		if _, limit, err := tr.measure(t.Context()); err != nil || limit != 1000 || tr.Full() != want {
			t.Errorf("%d: limit %d, full %v, %v; want full %v", i, limit, tr.Full(), err, want)
		}
	}
	if warned, calm := strings.Count(log.String(), "WARN"), strings.Count(log.String(), "INFO"); warned != 1 || calm != 1 {
		t.Errorf("the log is\n%s", log.String())
	}
}
