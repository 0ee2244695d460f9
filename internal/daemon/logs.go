package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// Where the log goes: to the home's file where stderr is that file, as it is
// in the background and under launchd and Windows; to stderr and nowhere else
// for a container or systemd; and where stderr is a person's terminal to the
// file, and to the terminal only what a person should know.

// A Stderr is what a daemon in the foreground cannot know of its stderr.
type Stderr struct {
	Terminal bool // a person's
	Verbose  bool // who wants the whole log there
	Service  bool // a service manager's: JSON unless fwd.toml says otherwise
}

// maxLog is at which size the log's file is begun anew, in bytes: some 30 000
// lines, weeks of them at the level info. One old file is kept.
const maxLog = 4 << 20

// openLog makes the daemon's log; done closes what was opened for it.
func openLog(home Home, how logConfig, level slog.Leveler, to Stderr) (log *slog.Logger, done func(), err error) {
	format := how.Format.text
	if format == "" && to.Service {
		format = "json"
	}
	if !to.Terminal && !isFile(os.Stderr, home.Log()) {
		return slog.New(logHandler(os.Stderr, format, level)), func() {}, nil
	}
	f, err := openBounded(home.Log(), maxLog)
	if err != nil {
		return nil, nil, fmt.Errorf("open the daemon's log: %w", err)
	}
	h := logHandler(f, format, level)
	if to.Terminal {
		here := slog.Leveler(slog.LevelWarn)
		if to.Verbose || os.Getenv("FWD_LOG") != "" {
			here = level
		}
		h = both{h, logHandler(os.Stderr, "text", here)}
	}
	return slog.New(h), func() { f.Close() }, nil
}

func isFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// logHandler: FWD_LOG_FORMAT=text|json, else format.
func logHandler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	if env := os.Getenv("FWD_LOG_FORMAT"); env != "" {
		format = env
	}
	opt := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.NewJSONHandler(w, opt)
	}
	return slog.NewTextHandler(w, opt)
}

// both hands each record to two handlers.
type both [2]slog.Handler

func (b both) Enabled(ctx context.Context, l slog.Level) bool {
	return b[0].Enabled(ctx, l) || b[1].Enabled(ctx, l)
}

func (b both) Handle(ctx context.Context, r slog.Record) error {
	var errs [2]error
	for i, h := range b {
		if h.Enabled(ctx, r.Level) {
			errs[i] = h.Handle(ctx, r.Clone())
		}
	}
	return errors.Join(errs[:]...)
}

func (b both) WithAttrs(attrs []slog.Attr) slog.Handler {
	return both{b[0].WithAttrs(attrs), b[1].WithAttrs(attrs)}
}

func (b both) WithGroup(name string) slog.Handler {
	return both{b[0].WithGroup(name), b[1].WithGroup(name)}
}

// A bounded file is begun anew at its bound, what it held being copied to
// PATH.1. It is emptied and not renamed: our stderr is the same file, which a
// crash is written to, somebody may be following it, and Windows renames no
// open file.
type bounded struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

func openBounded(path string, max int64) (*bounded, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &bounded{path: path, max: max, f: f, size: info.Size()}, nil
}

// Write appends one line. A file that cannot be begun anew grows on: a log
// that is too long is better than none.
func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.size > 0 && b.size+int64(len(p)) > b.max && b.beginAnewLocked() == nil {
		b.size = 0
	}
	n, err := b.f.Write(p)
	b.size += int64(n)
	return n, err
}

func (b *bounded) beginAnewLocked() error {
	old, err := os.OpenFile(b.path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// What others wrote meanwhile, a library or a crash, is in it too.
	_, err = io.Copy(old, io.NewSectionReader(b.f, 0, 2*b.max))
	if err = errors.Join(err, old.Close()); err != nil {
		return err
	}
	return b.f.Truncate(0)
}

func (b *bounded) Close() error { return b.f.Close() }
