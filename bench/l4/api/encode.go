package api

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	restwatch "k8s.io/client-go/rest/watch"
)

// gvk is the kind as a schema.GroupVersionKind.
func gvk(apiVersion, kind string) schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(apiVersion, kind)
}

// An encoder writes answers in one media type.
type encoder struct{ runtime.SerializerInfo }

// newEncoder picks the first media type of an Accept header that is known, JSON if none is.
func newEncoder(accept string) encoder {
	known := scheme.Codecs.SupportedMediaTypes()
	for entry := range strings.SplitSeq(accept+","+runtime.ContentTypeJSON, ",") {
		media, _, _ := strings.Cut(strings.TrimSpace(entry), ";")
		if info, ok := runtime.SerializerInfoForMediaType(known, media); ok && info.StreamSerializer != nil {
			return encoder{info}
		}
	}
	panic("BUG: JSON is not known")
}

func (e encoder) answer(w http.ResponseWriter, code int, o runtime.Object) {
	w.Header().Set("Content-Type", e.MediaType)
	w.WriteHeader(code)
	_ = e.Serializer.Encode(o, w) // fails when the client is gone
}

// fail says that what was asked for is not there.
func (e encoder) fail(w http.ResponseWriter, message string) {
	e.answer(w, http.StatusNotFound, &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound, Message: message,
	})
}

func (s *Server) list(w http.ResponseWriter, out encoder, c *collection, name string) {
	all, version := s.selected(c, name)
	items := make([]runtime.Object, len(all))
	for i, o := range all {
		items[i] = o
	}
	list := c.empty()
	if err := meta.SetList(list, items); err != nil {
		panic("BUG: " + err.Error())
	}
	if m, err := meta.ListAccessor(list); err == nil {
		m.SetResourceVersion(strconv.FormatInt(version, 10))
	}
	out.answer(w, http.StatusOK, list)
}

// A stream is a watch's answer.
type stream struct {
	events *restwatch.Encoder
	w      http.ResponseWriter
	err    error // the client is gone
}

func (e encoder) stream(w http.ResponseWriter) *stream {
	media := e.MediaType
	if media == runtime.ContentTypeProtobuf {
		media += ";stream=watch"
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	frames := e.StreamSerializer.NewFrameWriter(io.Writer(w))
	return &stream{
		events: restwatch.NewEncoder(streaming.NewEncoder(frames, e.StreamSerializer.Serializer), e.Serializer),
		w:      w,
	}
}

func (s *stream) send(kind watch.EventType, o runtime.Object) {
	if s.err == nil {
		s.err = s.events.Encode(&watch.Event{Type: kind, Object: o})
	}
}

func (s *stream) flush() {
	if s.err == nil {
		s.err = http.NewResponseController(s.w).Flush()
	}
}
