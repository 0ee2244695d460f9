package daemon

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strings"
	"time"
)

// Profiles are what `fwd debug` can take, over the control socket alone: no port
// is opened for it.
var Profiles = []string{"allocs", "block", "cpu", "goroutine", "heap", "mutex", "stacks", "threadcreate", "trace"}

const (
	profileFor     = 10 * time.Second
	maxProfileFor  = 5 * time.Minute
	profilePiece   = 256 << 10 // bytes in one event
	maxProfileSize = 256 << 20 // a trace of a busy process grows by megabytes a second
)

func (d *Daemon) debug(ctx context.Context, req DebugRequest, emit func(Event)) error {
	span := req.For
	if span <= 0 {
		span = profileFor
	}
	if span > maxProfileFor {
		return usage("fwd debug "+req.Profile+" --for 10s", "a profile takes at most %s", plainDuration(maxProfileFor))
	}
	out := &profileBuffer{most: maxProfileSize}
	if err := profile(ctx, req.Profile, span, out); err != nil {
		return err
	}
	for b := out.Bytes(); len(b) > 0; {
		piece := b[:min(len(b), profilePiece)]
		b = b[len(piece):]
		if err := emitResult(emit, "profile", piece); err != nil {
			return err
		}
	}
	return nil
}

// profile writes one to w; cpu and trace watch for so long first.
func profile(ctx context.Context, name string, span time.Duration, w io.Writer) error {
	wait := func() {
		select {
		case <-ctx.Done():
		case <-time.After(span):
		}
	}
	switch name {
	case "cpu":
		if err := pprof.StartCPUProfile(w); err != nil {
			return fail(ExitFailed, "in-use", "wait until it is done", "take a CPU profile: %v", err)
		}
		wait()
		pprof.StopCPUProfile()
		return ctx.Err()
	case "trace":
		if err := trace.Start(w); err != nil {
			return fail(ExitFailed, "in-use", "wait until it is done", "trace: %v", err)
		}
		wait()
		trace.Stop()
		return ctx.Err()
	case "block", "mutex": // they count only while somebody looks, for counting costs
		if name == "block" {
			runtime.SetBlockProfileRate(10_000)
			defer runtime.SetBlockProfileRate(0)
		} else {
			defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(10))
		}
		wait()
	case "heap", "allocs":
		runtime.GC() // or it tells of the state two collections ago
	case "stacks":
		return pprof.Lookup("goroutine").WriteTo(w, 2)
	}
	p := pprof.Lookup(name)
	if p == nil {
		return usage("one of "+strings.Join(Profiles, ", "), "there is no profile %q", clean(name, 40))
	}
	return p.WriteTo(w, 0)
}

// profileBuffer keeps what is written, up to a size.
type profileBuffer struct {
	bytes.Buffer
	most int
}

func (b *profileBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.most {
		return 0, io.ErrShortBuffer
	}
	return b.Buffer.Write(p)
}
