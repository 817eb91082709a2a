package embedtest

import (
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const tailLines = 100

// A tail keeps the last lines of the members' logs.
type tail struct {
	mu    sync.Mutex // guards lines and next
	lines [tailLines]string
	next  int
}

func newTail() *tail { return &tail{} }

func (t *tail) logger() *zap.Logger {
	encoder := zap.NewDevelopmentEncoderConfig()
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(encoder), t, zapcore.InfoLevel)
	return zap.New(core, zap.WithFatalHook(t))
}

// Write implements [zapcore.WriteSyncer]; zap writes one entry at a time.
func (t *tail) Write(entry []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[t.next%tailLines] = string(entry)
	t.next++
	return len(entry), nil
}

// Sync implements [zapcore.WriteSyncer].
func (t *tail) Sync() error { return nil }

// OnWrite implements [zapcore.CheckWriteHook]. Without it, a fatal entry would end the
// process silently, because the log is only in memory.
func (t *tail) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {
	panic("embedtest: fatal error in etcd:\n" + t.String())
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for i := range tailLines {
		b.WriteString(t.lines[(t.next+i)%tailLines])
	}
	return b.String()
}
