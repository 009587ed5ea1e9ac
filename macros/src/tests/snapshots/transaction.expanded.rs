/// Changed, then consumed.
pub trait Steps: Send + 'static {
    /// Changes it.
    fn put(
        &mut self,
        layer: &Key,
        items: Vec<u8>,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Ends it.
    fn finish(self, inner: bool) -> impl Future<Output = Result<()>> + Send;
}
/// [`Steps`] for a wrapper: each method has the transaction inside as an argument, and forwards to it unless it is overridden.
#[diagnostic::on_unimplemented(
    message = "the wrapper `{Self}` does not have the capability `Steps`"
)]
pub trait ChangesWrapper<Inner: Steps>: Sized {
    /// [`Steps::put`], by default of the transaction inside.
    fn put(
        &mut self,
        inner: &mut Inner,
        layer: &Key,
        items: Vec<u8>,
    ) -> impl Future<Output = Result<()>> + Send {
        <Inner as Steps>::put(inner, layer, items)
    }
    /// [`Steps::finish`], by default of the transaction inside.
    fn finish(
        self,
        __inner: Inner,
        inner: bool,
    ) -> impl Future<Output = Result<()>> + Send {
        <Inner as Steps>::finish(__inner, inner)
    }
}
const _: () = {
    struct __PutCall<'__call> {
        layer: &'__call Key,
        items: Vec<u8>,
    }
    impl<'__on, '__call, __B: Steps> ::gateway_storage::layer::Call<&'__on mut __B>
    for __PutCall<'__call> {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "transaction_put",
                ::gateway_storage::layer::OperationKind::Write,
            )
            .in_transaction();
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.items.len())
        }
        fn failure(output: &()) -> ::core::option::Option<&::gateway_storage::Error> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<()>::failure(output)
        }
        #[inline]
        async fn run(&self, on: &'__on mut __B) -> ::gateway_storage::Result<()> {
            <__B as Steps>::put(
                    on,
                    ::core::clone::Clone::clone(&self.layer),
                    ::core::clone::Clone::clone(&self.items),
                )
                .await
        }
    }
    struct __FinishCall {
        inner: bool,
    }
    impl<__B: Steps> ::gateway_storage::layer::Call<::gateway_storage::layer::Owned<__B>>
    for __FinishCall {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "finish",
            ::gateway_storage::layer::OperationKind::Control,
        );
        #[inline]
        async fn run(
            &self,
            on: ::gateway_storage::layer::Owned<__B>,
        ) -> ::gateway_storage::Result<()> {
            <__B as Steps>::finish(on.0, ::core::clone::Clone::clone(&self.inner)).await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__L: ::gateway_storage::layer::Layer, __B: Steps> Steps
    for ::gateway_storage::layer::LayeredTransaction<__L, __B> {
        #[inline]
        async fn put(
            &mut self,
            layer: &Key,
            items: Vec<u8>,
        ) -> ::gateway_storage::Result<()> {
            let call = __PutCall { layer, items };
            let (layer, inner) = self.parts();
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn finish(self, inner: bool) -> ::gateway_storage::Result<()> {
            let call = __FinishCall { inner };
            let (layer, inner) = self.into_parts();
            ::gateway_storage::layer::Layer::around(
                    &layer,
                    ::gateway_storage::layer::Owned(inner),
                    call,
                )
                .await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__A: Steps, __B: Steps> Steps for ::gateway_storage::Either<__A, __B>
    where
        Self: Send + 'static,
    {
        #[inline]
        fn put(
            &mut self,
            layer: &Key,
            items: Vec<u8>,
        ) -> impl Future<Output = Result<()>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Steps>::put(__on, layer, items),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Steps>::put(__on, layer, items),
                    )
                }
            }
        }
        #[inline]
        fn finish(self, inner: bool) -> impl Future<Output = Result<()>> + Send {
            match self {
                ::gateway_storage::Either::Left(__on) => {
                    ::gateway_storage::either::Run::Left(
                        <__A as Steps>::finish(__on, inner),
                    )
                }
                ::gateway_storage::Either::Right(__on) => {
                    ::gateway_storage::either::Run::Right(
                        <__B as Steps>::finish(__on, inner),
                    )
                }
            }
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__W: ChangesWrapper<__B>, __B: Steps> Steps
    for ::gateway_storage::wrap::Wrapped<__W, __B>
    where
        Self: Send + 'static,
    {
        #[inline]
        fn put(
            &mut self,
            layer: &Key,
            items: Vec<u8>,
        ) -> impl Future<Output = Result<()>> + Send {
            let (__wrapper, __inner) = self.parts_mut();
            <__W as ChangesWrapper<__B>>::put(__wrapper, __inner, layer, items)
        }
        #[inline]
        fn finish(self, inner: bool) -> impl Future<Output = Result<()>> + Send {
            let (__wrapper, __inner) = self.into_parts();
            <__W as ChangesWrapper<__B>>::finish(__wrapper, __inner, inner)
        }
    }
};
