package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// followInterval is how often a log that is being followed is looked at.
const followInterval = 50 * time.Millisecond

// containerLog is the output of one container: one file over all its runs, which the container writes itself.
type containerLog struct {
	path string

	mu             sync.Mutex
	last, previous *logRun // nil before the first, the second run
}

// logRun is the part of a log that one run of the container wrote.
type logRun struct {
	from  int64
	ended chan struct{}
	to    int64 // set when ended is closed
}

// begin opens the log for a new run. The caller calls end when the run is over, also if it did not come about.
func (l *containerLog) begin() (*os.File, error) {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	size, err := fileSize(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.previous = &logRun{from: size, ended: make(chan struct{})}, l.last
	return file, nil
}

// end closes the run that begin opened: nothing writes any more.
func (l *containerLog) end() error {
	info, err := os.Stat(l.path)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.to = l.last.from; err == nil {
		l.last.to = info.Size()
	}
	close(l.last.ended)
	return err
}

// runs returns the last run and the one before it; nil for what there was not.
func (l *containerLog) runs() (last, previous *logRun) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.previous
}

// logOptions are those of corev1.PodLogOptions that the agent honours.
type logOptions struct {
	follow, previous bool
	tailLines        int64 // -1 for all
	limitBytes       int64 // -1 for no limit
}

// write copies the run to w as o says. With o.follow it returns when the run has ended or ctx ends.
func (r *logRun) write(ctx context.Context, w io.Writer, path string, o logOptions) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	size, over, err := r.extent(file)
	if err != nil {
		return err
	}
	at, err := tailStart(io.NewSectionReader(file, r.from, size-r.from), o.tailLines)
	if err != nil {
		return err
	}
	for at, left := at+r.from, o.limitBytes; ; {
		n := size - at
		if left >= 0 {
			n = min(n, left)
			left -= n
		}
		if _, err := io.Copy(w, io.NewSectionReader(file, at, n)); err != nil {
			return err
		}
		at += n
		if over || !o.follow || left == 0 || !r.wait(ctx) {
			return nil
		}
		if size, over, err = r.extent(file); err != nil {
			return err
		}
	}
}

// extent returns where the run's output ends by now, and whether that is final. The size is read first: what a next
// run writes after the end of this one is not counted.
func (r *logRun) extent(file *os.File) (size int64, over bool, err error) {
	size, err = fileSize(file)
	select {
	case <-r.ended:
		return r.to, true, err
	default:
		return size, false, err
	}
}

// wait lets some time pass and says whether ctx goes on.
func (r *logRun) wait(ctx context.Context) bool {
	timer := time.NewTimer(followInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.ended:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func fileSize(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// tailStart returns where the last n lines of text begin; 0 if n is negative. A line may lack its end.
func tailStart(text *io.SectionReader, n int64) (int64, error) {
	if n < 0 {
		return 0, nil
	}
	if n == 0 {
		return text.Size(), nil
	}
	block := make([]byte, 4096)
	newlines := int64(0)
	for end := text.Size(); end > 0; {
		begin := max(0, end-int64(len(block)))
		part := block[:end-begin]
		if _, err := text.ReadAt(part, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if end == text.Size() && part[len(part)-1] != '\n' {
			newlines++ // the last line has no end yet
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part[:i], '\n') {
			if newlines == n {
				return begin + int64(i) + 1, nil
			}
			newlines++
		}
		end = begin
	}
	return 0, nil
}
