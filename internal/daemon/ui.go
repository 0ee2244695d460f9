package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The page of `fwd ui`: status to look at, in a browser of this machine. What
// it shows is made here, by html/template; the browser's one script puts parts
// in their place as they change. Nothing comes from elsewhere.
//
// Who may see it is who knows its address: it is loopback's, its path is a
// secret of 128 bits, and it answers to the names of loopback alone, so that no
// web page gets at it by a name of its own. It changes nothing unless asked for
// with --manage; then each form carries a second secret, and a request that a
// browser says comes from another site is refused.

//go:embed page
var pageFiles embed.FS

// minToken is the length of 128 bits in base32, which is what cmd/fwd makes.
const minToken = 26

// ui is one page.
type ui struct {
	d      *Daemon
	ctx    context.Context // ends with the wish
	token  string
	manage bool
	form   string // the secret of its forms
	parts  *template.Template
	tasks  sync.WaitGroup

	mu   sync.Mutex
	note note // what the last form did
}

type note struct {
	Text   string
	Failed bool
}

// serveUI carries out `fwd ui` and lasts until ctx ends.
func (d *Daemon) serveUI(ctx context.Context, req PageRequest, emit func(Event)) error {
	if len(req.Token) < minToken || strings.Trim(req.Token, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return usage("fwd ui", "the page's token is %d characters of base32 or more", minToken)
	}
	parts, err := template.New("").Funcs(pageFuncs).ParseFS(pageFiles, "page/*.html")
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(req.Port)))
	if err != nil {
		return fail(ExitLocalPort, "local-port", "choose another with --port", "cannot serve the page: %v", err)
	}
	u := &ui{d: d, ctx: ctx, token: req.Token, manage: req.Manage, form: rand.Text(), parts: parts}
	defer u.tasks.Wait()
	emit(Event{Event: "page", URL: "http://" + l.Addr().String() + "/" + u.token + "/"})
	return serveHTTP(ctx, l, hostIsLoopback(l.Addr(), u.handler()))
}

func (u *ui) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{token}/{$}", u.servePage)
	mux.HandleFunc("GET /{token}/live", u.serveLive)
	for _, name := range []string{"style.css", "live.js"} {
		mux.HandleFunc("GET /{token}/"+name, func(w http.ResponseWriter, r *http.Request) {
			http.ServeFileFS(w, r, pageFiles, "page/"+name)
		})
	}
	if u.manage {
		mux.HandleFunc("POST /{token}/do", u.serveForm)
	}
	return headers(u.guarded(http.NewCrossOriginProtection().Handler(mux)))
}

// guarded answers nobody who does not know the token.
func (u *ui) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if subtle.ConstantTimeCompare([]byte(first), []byte(u.token)) != 1 {
			http.Error(w, "open the address that \"fwd ui\" printed", http.StatusNotFound)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// headers keep the page to itself: its own files and no others, in no frame, in
// no cache, and its address in no Referer.
func headers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		set := w.Header().Set
		set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		set("Cache-Control", "no-store")
		set("Referrer-Policy", "no-referrer")
		set("X-Content-Type-Options", "nosniff")
		set("X-Frame-Options", "DENY")
		set("Cross-Origin-Opener-Policy", "same-origin")
		set("Cross-Origin-Resource-Policy", "same-origin")
		h.ServeHTTP(w, r)
	})
}

func (u *ui) servePage(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	if err := u.parts.ExecuteTemplate(&b, "page.html", u.view()); err != nil {
		u.d.log.Error("make the page", "err", err)
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
}

// pageParts are what changes by itself, by the IDs of their elements.
var pageParts = []string{"title", "note", "map", "throughput", "services", "forwards", "sessions", "peers", "invites"}

// serveLive sends each part when it has changed, as server-sent events, until
// the browser or the wish goes.
func (u *ui) serveLive(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	sent := map[string]string{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		view := u.view()
		for _, part := range pageParts {
			var b strings.Builder
			if err := u.parts.ExecuteTemplate(&b, part, view); err != nil {
				u.d.log.Error("make the page", "part", part, "err", err)
				return
			}
			if b.String() == sent[part] {
				continue
			}
			sent[part] = b.String()
			data, err := json.Marshal(map[string]string{"id": part, "html": b.String()})
			if err != nil {
				return
			}
			control.SetWriteDeadline(time.Now().Add(eventTimeout))
			if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
				return
			}
		}
		if control.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-u.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// formTimeout bounds what a form asks for: a revocation goes to the owner and back.
const formTimeout = 30 * time.Second

// serveForm carries out one form and shows the page again.
func (u *ui) serveForm(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 16<<10) // some words
	if err := r.ParseForm(); err != nil {
		http.Error(w, "not a form", http.StatusBadRequest)
		return
	}
	if subtle.ConstantTimeCompare([]byte(r.PostForm.Get("form")), []byte(u.form)) != 1 {
		http.Error(w, "the form is not of this page: load it anew", http.StatusForbidden)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), formTimeout)
	defer cancel()
	done, err := u.act(ctx, r.PostForm.Get)
	n := note{Text: done}
	if err != nil {
		n = note{Text: failureOf(err).What, Failed: true}
	}
	u.mu.Lock()
	u.note = n
	u.mu.Unlock()
	http.Redirect(w, r, "./", http.StatusSeeOther)
}

// act does what a form says, as the command of that name would.
func (u *ui) act(ctx context.Context, word func(string) string) (done string, err error) {
	field := func(name string) string { return strings.TrimSpace(word(name)) }
	service, who, peer := field("service"), field("who"), field("peer")
	switch command := field("do"); command {
	case "allow", "deny":
		if who == "" {
			return "", usage("", "name a machine, a tag (tag:ops), or members")
		}
		err = u.command(ctx, "allow", AllowRequest{Service: service, Who: who, Deny: command == "deny"})
		return fmt.Sprintf("%s: %s %s", command, service, who), err
	case "revoke":
		return "revoked " + peer, u.command(ctx, "revoke", RevokeRequest{Peer: peer})
	case "unexpose":
		return service + "/" + field("kind") + " is no longer exposed", u.command(ctx, "unexpose", UnexposeRequest{Name: service + "/" + field("kind")})
	case "expose":
		return "exposed " + field("target"), u.expose(ctx, ExposeRequest{Target: field("target"), Name: service, Allow: strings.Fields(strings.ReplaceAll(who, ",", " "))})
	default:
		return "", usage("", "the page has no %q", command)
	}
}

func (u *ui) command(ctx context.Context, name string, request any) error {
	args, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	u.d.log.Info("asked by the page", "command", name, "args", string(args))
	return u.d.do(ctx, Request{API: APIVersion, Command: name, Args: args}, func(Event) {}, nil)
}

// expose has `fwd up` keep it; where there is none the page holds it, as a
// terminal would.
func (u *ui) expose(ctx context.Context, req ExposeRequest) error {
	if u.d.up != nil {
		req.Keep = true
		return u.command(ctx, "expose", req)
	}
	args, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	u.d.log.Info("asked by the page", "command", "expose", "args", string(args))
	up, ended := make(chan struct{}, 1), make(chan error, 1)
	u.tasks.Go(func() { // ends with the page, or by unexpose
		ended <- u.d.do(u.ctx, Request{API: APIVersion, Command: "expose", Args: args}, func(e Event) {
			if e.fulfils() {
				select {
				case up <- struct{}{}:
				default:
				}
			}
		}, nil)
	})
	select {
	case <-up:
		return nil
	case err := <-ended:
		if err == nil {
			err = errors.New("it ended at once")
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
