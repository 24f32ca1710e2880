package conntrack

import (
	"encoding/binary"
	"errors"
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
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			kernel, socket := os.NewFile(uintptr(pair[0]), "kernel"), os.NewFile(uintptr(pair[1]), "socket")
			defer kernel.Close()
			defer socket.Close()
			for _, b := range tt.answer {
				if _, err := kernel.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			q := querier{socket: socket, b: make([]byte, answerSize)}
			err = q.ask(nl.NewNetlinkRequest(kind, 0), func(m []byte) { got = append(got, string(m)) })
			if strings.Join(got, " ") != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}
